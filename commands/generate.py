"""Make more images from a trained model, outside DVC.

synthmri generate --n 20 --prompt "lesions FLAIR axial brain MRI, level 6" --format png --out generated
"""

import sys
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pandas as pd
import typer

from commands import _shield
from stages import _cli, _files
from synthmri import formats, params
from synthmri.errors import UserError
from synthmri.evaluation import shield
from synthmri.generators import latent_diffusion
from synthmri.scans import contrast
from synthmri.training import sampling

MODEL, CHOSEN = Path("models/latent_diffusion"), Path("models/sampling.json")  # of `dvc repro`
TRAINED_ON = Path("data/slices/train")
PROMPT = "none FLAIR axial brain MRI, level 6"


def main(
    n: Annotated[int, typer.Option(min=1, max=100_000, help="number of images, of each prompt")] = 16,
    prompt: Annotated[
        list[str] | None, typer.Option(help="what to draw, in the words of training; may be given several times")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**62, help="of the first image; image i has seed + i")] = 1_000_000,
    format: Annotated[
        Literal["png", "npy", "nifti", "bids", "dicom"],
        typer.Option(help="format of the files; bids: a BIDS derivative"),
    ] = "png",
    out: Annotated[Path, typer.Option(help="folder to make; it must not exist yet")] = Path("generated"),
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = MODEL,
    settings: Annotated[
        Path | None,
        typer.Option(help="JSON of guidance, steps and scheduler; for the model of `dvc repro`, what `sweep` chose"),
    ] = None,
    pixel_mm: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="mm of a pixel's edge; for the model of `dvc repro`, its training's"),
    ] = None,
    slice_mm: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="mm that a slice is thick; for the model of `dvc repro`, its training's"),
    ] = None,
    shielded: Annotated[
        bool | None,
        typer.Option(
            "--shield/--no-shield",
            help="draw again what is too like a training slice or no head; else: for the model of `dvc repro` alone",
        ),
    ] = None,
):
    """Draw N images of each prompt by section `sample`, with masks of their lesions where the model draws these.

    The shield compares with data/slices. It protects the images that are written, not the weights: whoever has these
    draws without it.
    """
    runtime = _cli.start()
    p = params.read(_cli.PARAMS, "sample", sampling.Sample)
    if settings is None and model == MODEL and CHOSEN.is_file():
        settings = CHOSEN
    if model == MODEL:
        trained_pixel_mm, trained_slice_mm = _of_training()
        pixel_mm, slice_mm = pixel_mm or trained_pixel_mm, slice_mm or trained_slice_mm
    if pixel_mm is None and format in ("nifti", "bids", "dicom"):
        print("nobody knows how large a pixel is, so the files do not say; tell it with --pixel-mm", file=sys.stderr)
    if settings is not None:
        p = sampling.with_choice(p, _files.read_json(settings))
    table = _drawn(prompt or [PROMPT], n, seed)
    formats.check(table, format)
    if p.guidance_scale > sampling.guidance(table["prompt"], p.guidance_scale):
        print(f"the prompt is empty, so guidance {p.guidance_scale:g} changes nothing and is left out", file=sys.stderr)
    if out.exists():
        raise UserError(f"{out} exists already; name another folder with --out, or remove it")
    if not (model / "model_index.json").is_file():
        raise UserError(f"{model} holds no trained model; run `dvc repro` first, or name one with --model")
    if shielded is None:
        shielded = model == MODEL
    if shielded and model == MODEL:
        _shield.check(model)
    pipe = latent_diffusion.load(model, device=runtime.device)
    size = latent_diffusion.image_size(pipe)
    precision = _cli.precision(runtime)

    masks: dict[int, np.ndarray] = {}  # seed -> that of its image, where the model draws these

    def draw(which: list[int], seeds: list[int]) -> np.ndarray:
        planes = latent_diffusion.draw(
            pipe, list(table["prompt"].iloc[which]), seeds, p, size=size, precision=precision,
            progress=lambda starts, k: _cli.progress(starts, "sampled batches", k),
        )  # fmt: skip
        masks.update(zip(seeds, planes[:, 1].copy(), strict=True) if planes.shape[1] > 1 else ())
        return planes[:, 0].copy()

    if shielded:
        known = _shield.known(size=size)
        found = shield.draw(draw, list(table["seed"]), known)
        images, table = found.images, _passed(table, found)
    else:
        print("not shielded: nobody has compared these with the training slices (--shield)", file=sys.stderr)
        images = draw(list(range(len(table))), list(table["seed"]))
    settings_used = p.model_dump(include={"steps", "guidance_scale", "scheduler"})
    drawing = formats.Drawing(table, model.name, _files.digest(model), settings_used, pixel_mm, slice_mm)
    with _files.replacing(out) as folder:
        marks = np.stack([masks[seed] for seed in table["seed"]]) if masks else None
        formats.write(folder, images, drawing, format, marks)
    print(f"{len(images)} images{' and their masks' if masks else ''} in {out}")


def _passed(table: pd.DataFrame, found: shield.Shielded) -> pd.DataFrame:
    """The rows of what passed, from which seed and how alike, and how much was refused; says so."""
    if missing := len(table) - len(found.images):
        text = f"{missing} of {len(table)} images passed the shield in none of {shield.ATTEMPTS} draws"
        if not len(found.images):
            raise UserError(
                f"{text}; look at them with --no-shield: the model may copy its training slices, draw no heads, or not "
                "know this prompt"
            )
        print(f"{text} and are missing", file=sys.stderr)
    print(
        f"of {found.drawn} drawn, {found.alike} refused as too like a training slice and {found.implausible} as no "
        "plausible head",
        file=sys.stderr,
    )
    return table.iloc[found.asked].reset_index(drop=True).assign(
        seed=found.seeds, likeness=found.likeness.round(4), drawn=found.drawn, alike=found.alike,
        implausible=found.implausible,
    )  # fmt: skip


def _of_training() -> tuple[float | None, float | None]:
    """Edge of a pixel and thickness of a slice in mm of what the model of `dvc repro` was trained on.

    None where nobody knows: pictures do not tell, and slices of several thicknesses have none.
    """
    if not (TRAINED_ON / "meta.json").is_file():
        return None, None
    pixel_mm = _files.read_json(TRAINED_ON / "meta.json").get("pixel_mm")
    manifest = TRAINED_ON / "manifest.csv"
    known = set(pd.read_csv(manifest, dtype=str, keep_default_na=False)["slice_mm"]) if manifest.is_file() else {""}
    return pixel_mm, float(known.pop()) if len(known) == 1 and "" not in known else None


def _drawn(prompts: list[str], n: int, seed: int) -> pd.DataFrame:
    """A row an image: seed, prompt, and the contrast and plane that the prompt names, "" for none."""
    rows = []
    for i, prompt in enumerate(np.repeat(prompts, n)):
        plane = next((plane for plane in formats.DIRECTIONS if plane in prompt.lower()), "")
        rows.append((seed + i, str(prompt), contrast.contrast_of(prompt), plane))
    return pd.DataFrame(rows, columns=["seed", "prompt", "contrast", "plane"])


if __name__ == "__main__":
    _cli.run(main)
