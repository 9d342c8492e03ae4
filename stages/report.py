"""The results on one self-contained HTML page: three answers, slices, table, training, and what they were made from."""

import base64
import hashlib
import importlib.metadata
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt
from PIL import Image, ImageDraw, ImageFont

from stages import _cli, _files
from synthmri import imageset
from synthmri.reporting import answers, comparison, inline, page, plots

VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "torchmetrics", "lpips", "scikit-image", "dvc", "numpy")
POOR_LPIPS = 0.1  # of test slices; above it, fine structure is lost before anything is sampled
IN_A_ROW, WIDTH_PX = 8, 1200  # of the picture for git
USE = ("utility.md", "segmentation.md")
BASELINE_POINTS = 3  # of each baseline's training that are shown


def main(
    metrics: Annotated[Path, typer.Option(help="folder of all results")],
    slices: Annotated[Path, typer.Option(help="folder of the ImageSets train and test")],
    samples: Annotated[Path, typer.Option(help="folder of each model's ImageSet")],
    snapshots: Annotated[Path, typer.Option(help="folder of <model>.npy: the same seeds over each training")],
    params: Annotated[Path, typer.Option(help="the parameters they were made with")],
    defaults: Annotated[Path, typer.Option(help="those that it tells differences from")],
    out: Annotated[Path, typer.Option(help="HTML to write")],
    picture: Annotated[Path, typer.Option(help="PNG to write, small, for git: what others may see")],
) -> None:
    """Everything is in the file: it opens offline. Of own data it shows slices of people."""
    data = _files.read_json(metrics / "data.json")
    simulated = bool(data["simulated"])  # of the slices that are there: params.yaml may have changed since
    scores = _files.read_json(metrics / "comparison.json")
    models, references = scores["models"], scores["references"]
    privacy, verdicts = (_files.read_json(metrics / f"{name}.json") for name in ("privacy", "gate"))
    text_of_params = params.read_text(encoding="utf-8")
    model, verdict = models[comparison.FINE_TUNED], verdicts[comparison.FINE_TUNED]
    files = Path(__file__).parent
    script = (files / "report.js").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, loader=FileSystemLoader(files))
    dots, ticks = page.distances(models, references)
    headings, table = page.short_table(models, references, privacy)
    use, masks = ((metrics / name).read_text(encoding="utf-8").split("\n\n")[0] for name in USE)
    text = environment.get_template("report.html").render(
        answers=answers.three(models, references, privacy, verdict, use, masks, simulated=simulated),
        simulated=simulated,
        data=data,
        model=model,
        models=comparison.MODELS,
        dots=dots,
        ticks=ticks,
        floor_at=next((dot.at for dot in dots if dot.kind == "floor"), 0),
        headings=headings,
        table=table,
        finetuning=comparison.finetuning(models, references),
        autoencoder=_files.read_json(metrics / "autoencoder.json"),
        poor=model["recon_lpips"] > POOR_LPIPS,
        swept=len(pd.read_csv(metrics / "sweep.csv")) > 1,
        bound=references["real"].get("likeness_bound"),
        measured={"utility": answers.measured(use), "segmentation": answers.measured(masks)},
        asked={"synthetic": model.get("asked", {}), "real": model.get("asked_of_real", {})},
        efforts={name: _files.read_json(metrics / f"training/{name}.json") for name in comparison.MODELS},
        versions=[(name, importlib.metadata.version(name)) for name in VERSIONS],
        changed=page.changed(yaml.safe_load(text_of_params), yaml.safe_load(defaults.read_text(encoding="utf-8"))),
        params=text_of_params,
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        rendered=lambda name: _rendered(metrics / name),
        drawing=lambda name: inline.drawing_url(Image.open(metrics / name)),
        sheet=lambda name: inline.sheet_url(Image.open(metrics / name)),
        **_pictures(metrics, slices, samples, snapshots, references),
    )
    with _files.replacing(out) as part, _files.replacing(picture) as small:
        part.write_text(text, encoding="utf-8")
        admitted = [name for name in comparison.MODELS if verdicts[name]["passed"] or verdicts[name].get("override")]
        _for_git(slices, samples, simulated, admitted).save(small, "PNG")


def _pictures(metrics: Path, slices: Path, samples: Path, snapshots: Path, references: dict) -> dict:
    """What the template shows of slices."""
    train, test = (imageset.read(slices / name) for name in ("train", "test"))
    made = {name: imageset.read(samples / name) for name in comparison.MODELS}
    names = sorted(
        comparison.MODELS, key=lambda name: name != comparison.FINE_TUNED
    )  # ours first, then as in the table
    curves = pd.read_csv(metrics / "progression.csv")
    bound = references["real"].get("likeness_bound")

    def over_training(name: str, table: pd.DataFrame, most: int) -> list[dict]:
        return page.progress(np.load(snapshots / f"{name}.npy", mmap_mode="r"), table, most)

    def nearest(name: str, most: int) -> list[dict]:
        table = pd.read_csv(metrics / f"closest/{name}.csv")
        return page.pairs(made[name].images, train.images, table, bound, most)

    title = "test people" + ", simulated" * (test.meta.get("data", {}).get("source") == "simulated")
    rows = [(title, "real", page.shots(test.images, imageset.evenly(len(test), page.SHOWN), "test slice {}".format))]
    for name in names:
        first = range(min(page.SHOWN, len(made[name])))
        seeds = made[name].manifest["seed"]
        shots = page.shots(made[name].images, first, lambda row, seeds=seeds: f"seed {seeds[row]}")
        rows.append((comparison.MODELS[name], "model", shots))
    levels, kinds = page.asked_grid(test, made[names[0]])
    return {
        "rows": rows,
        "steps": over_training(names[0], pd.read_csv(metrics / "fd_progression.csv"), page.STEPS),
        "baselines": [
            (comparison.MODELS[name], over_training(name, curves[curves["model"] == name], BASELINE_POINTS))
            for name in names[1:]
        ],
        "nearest": {comparison.MODELS[name]: nearest(name, page.PAIRS if name == names[0] else 4) for name in names},
        "levels": levels,
        "kinds": kinds,
    }


def _rendered(file: Path) -> str:
    """Markdown as HTML. Labels come from elsewhere, so HTML in them stays text."""
    return MarkdownIt("commonmark", {"html": False}).enable("table").render(file.read_text(encoding="utf-8"))


def _for_git(slices: Path, samples: Path, simulated: bool, admitted: list[str]) -> Image.Image:
    """What git may hold: of simulated people test slices and below them a row of each model; of people's scans rows of
    those models alone that the gate admits (the others may have copied them), or, of none, words.
    """
    if not (simulated or admitted):
        words = Image.new("L", (WIDTH_PX, 160))
        lines = "no picture: the gate refuses all models, and what they drew stays here\n(metrics/gate.md says why)"
        ImageDraw.Draw(words).text((24, 48), lines, fill=255, font=ImageFont.load_default(26))
        return words
    rows = []
    if simulated:
        test = imageset.read(slices / "test").images
        rows.append(("test people, simulated", test[imageset.evenly(len(test), IN_A_ROW)]))
    for name in comparison.MODELS if simulated else admitted:
        rows.append((comparison.MODELS[name], imageset.read(samples / name).images[:IN_A_ROW]))
    captions = [title if i == 0 else "" for title, images in rows for i in range(len(images))]
    shown = plots.contact_sheet(np.concatenate([images for _, images in rows]), IN_A_ROW, captions)
    return shown.resize((WIDTH_PX, round(shown.height * WIDTH_PX / shown.width)), Image.Resampling.LANCZOS)


if __name__ == "__main__":
    _cli.run(main)
