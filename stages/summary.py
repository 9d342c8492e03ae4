"""Say where the results are, what the main numbers were, and what to try next."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages import common
from synthmri.errors import UserError

SPLITS = ("train", "val", "test")
NEXT = """\
what to try next
  .venv/bin/dvc exp run -S finetune.epochs=20 && .venv/bin/dvc metrics diff
  .venv/bin/python -m stages.generate --n 20 --format png --out generated
  own data: put files in data/raw/, set data.source to raw in params.yaml, `make repro`
Research only. Not for clinical use."""


def main():
    """Print the summary of the last `dvc repro`."""
    try:
        data = json.loads(Path("metrics/data.json").read_text(encoding="utf-8"))
        model = json.loads(Path("metrics/latent_diffusion.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{error.filename} is missing; run `dvc repro` first") from None
    console = Console()
    table = Table(title="latent diffusion against held-out slices", title_justify="left")
    for title in ("", "fine-tuned", "base, before", "floor: held-out against train"):
        table.add_column(title)
    for name in ("fd_alexnet", "kid_alexnet", "ssim", "psnr", "lpips"):
        cells = [source.get(name) for source in (model, model["base"], model["floor"])]
        table.add_row(name, *["" if cell is None else f"{cell:.4g}" for cell in cells])
    counts = [f"{name} {data[name]['images']} slices of {data[name]['subjects'] or '?'} subjects" for name in SPLITS]
    console.print(f"\ndata: {', '.join(counts)}")
    console.print(table)
    console.print(
        f"fd_alexnet fell by {100 * model['fd_alexnet_reduction']:.0f} % over fine-tuning (n = {model['n']:.0f})"
    )
    console.print("\npictures")
    for picture in sorted(Path("metrics").glob("*.png")):
        console.print(f"  {picture}", highlight=False)
    console.print(f"\n{NEXT}", highlight=False)


if __name__ == "__main__":
    common.run(main)
