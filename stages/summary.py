"""Say where the results are, what the main numbers were, and what to try next."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages import _cli, _files
from synthmri import params
from synthmri.reporting import comparison
from synthmri.scans import slicing

SPLITS = ("train", "val", "test")
SCORES = ("fd_effnet", "kid_effnet", "coverage", "memorised")
NEXT = """\
what to try next
  source .venv/bin/activate                # once in a shell
  dvc exp run -S finetune.epochs=20 && dvc metrics diff
  synthmri generate --n 20 --format png --out generated
  own data: put files in data/raw/, set data.source to raw in params.yaml, `make repro`
Research only. Not for clinical use."""


def main():
    """Print the summary of the last `dvc repro`."""
    data = _files.read_json(Path("metrics/data.json"))
    comparison_tree = _files.read_json(Path("metrics/comparison.json"))
    models, references = comparison_tree["models"], comparison_tree["references"]
    console = Console()
    table = Table(title="against test slices (± standard error over subjects)", title_justify="left")
    for title in ("", *SCORES):
        table.add_column(title)
    rows = {title: models[name] for name, title in comparison.MODELS.items()}
    rows |= {title: references[name] for name, title in comparison.REFERENCES.items()}
    for title, row in rows.items():
        table.add_row(title, *[_cell(row, name) for name in SCORES])
    counts = [f"{name} {data[name]['images']} slices of {data[name]['subjects'] or '?'} subjects" for name in SPLITS]
    size = params.read(_cli.PARAMS, "data", slicing.Data).image_size
    console.print(f"\ndata: {size} px, {', '.join(counts)}")
    console.print(table)
    console.print(comparison.finetuning(models, references))
    console.print("\nall of it on one page: metrics/report.html\npictures")
    for picture in sorted(Path("metrics").rglob("*.png")):
        console.print(f"  {picture}", highlight=False)
    console.print(f"\n{NEXT}", highlight=False)


def _cell(row: dict[str, float], name: str) -> str:
    spread = f" ± {row[f'{name}_std']:.2g}" if f"{name}_std" in row else ""
    return f"{row[name]:.3g}{spread}" if name in row else ""


if __name__ == "__main__":
    _cli.run(main)
