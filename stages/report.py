"""The results on one self-contained HTML page: table, curves, pictures, and what they were made from."""

import base64
import importlib.metadata
import io
from pathlib import Path
from typing import Annotated

import typer
from jinja2 import Environment
from markdown_it import MarkdownIt
from PIL import Image, ImageDraw, ImageFont

from stages import _cli, _files
from synthmri.reporting import comparison

WIDEST_PX = 1400
VERSIONS = ("torch", "diffusers", "transformers", "accelerate", "torchmetrics", "lpips", "scikit-image", "dvc", "numpy")
POOR_LPIPS = 0.1  # of test slices; above it, fine structure is lost before anything is sampled


def main(
    metrics: Annotated[Path, typer.Option(help="folder of all results")],
    params: Annotated[Path, typer.Option(help="the parameters they were made with")],
    out: Annotated[Path, typer.Option(help="HTML to write")],
    picture: Annotated[Path, typer.Option(help="PNG to write, small, for git: what others may see")],
) -> None:
    """Everything is in the file: it opens offline. Of own data it shows slices of people."""
    data = _files.read_json(metrics / "data.json")
    text_of_params = params.read_text(encoding="utf-8")
    simulated = bool(data["simulated"])  # of the slices that are there: params.yaml may have changed since
    scores = _files.read_json(metrics / "comparison.json")
    model = scores["models"]["latent_diffusion"]
    template = Environment(autoescape=True).from_string(
        Path(__file__).with_name("report.html").read_text(encoding="utf-8")
    )

    def rendered(name: str) -> str:
        # Labels come from elsewhere, so HTML in them stays text.
        markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
        return markdown.render((metrics / name).read_text(encoding="utf-8"))

    page = template.render(
        rendered=rendered,
        data=data,
        model=model,
        finetuning=comparison.finetuning(scores["models"], scores["references"]),
        autoencoder=_files.read_json(metrics / "autoencoder.json"),
        asked={"synthetic": model.get("asked", {}), "real": model.get("asked_of_real", {})},
        poor=model["recon_lpips"] > POOR_LPIPS,
        models=comparison.MODELS,
        picture=lambda name: _inline(metrics / name),
        params=text_of_params,
        simulated=simulated,
        versions=[(name, importlib.metadata.version(name)) for name in VERSIONS],
    )
    verdict = _files.read_json(metrics / "gate.json")["latent_diffusion"]
    with _files.replacing(out) as part, _files.replacing(picture) as small:
        part.write_text(page, encoding="utf-8")
        _for_git(metrics, simulated, bool(verdict["passed"] or verdict.get("override"))).save(small, "PNG")


def _for_git(metrics: Path, simulated: bool, admitted: bool) -> Image.Image:
    """What git may hold: of simulated people test slices beside synthetic ones; of people's scans synthetic ones
    alone, and of a model that the gate refuses (it may have copied them) nothing but that.
    """
    if simulated or admitted:
        shown = Image.open(metrics / ("real_beside" if simulated else "samples") / "latent_diffusion.png").convert("L")
        return shown.resize((1200, round(shown.height * 1200 / shown.width)), Image.Resampling.LANCZOS)
    page = Image.new("L", (1200, 160))
    lines = "no picture: the gate refuses the model, and what it drew stays on its machine\n(metrics/gate.md says why)"
    ImageDraw.Draw(page).text((24, 48), lines, fill=255, font=ImageFont.load_default(26))
    return page


def _inline(path: Path) -> str:
    """A picture as a data URL, at most WIDEST_PX wide."""
    image = Image.open(path).convert("RGB")
    if image.width > WIDEST_PX:
        image = image.resize((WIDEST_PX, round(image.height * WIDEST_PX / image.width)), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="JPEG", quality=82)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    _cli.run(main)
