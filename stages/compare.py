"""Put the scores of all models and references into one table: CSV, JSON, Markdown and a figure."""

import json
from pathlib import Path
from typing import Annotated

import typer

from stages import common
from synthmri import comparison, plots


def main(
    scores: Annotated[Path, typer.Option(help="folder of <model>.json, references.json, readers.json")],
    efforts: Annotated[Path, typer.Option(help="folder of <model>.json: parameters, images seen, operations")],
    csv: Annotated[Path, typer.Option(help="CSV to write")],
    tree: Annotated[Path, typer.Option(help="JSON to write")],
    markdown: Annotated[Path, typer.Option(help="Markdown to write")],
    picture: Annotated[Path, typer.Option(help="PNG to write: the distances and the coverage")],
) -> None:
    """Nothing is computed here but which lead is larger than its uncertainty."""
    models = {}
    for name in comparison.MODELS:
        effort = common.read_json(efforts / f"{name}.json")
        models[name] = common.read_json(scores / f"{name}.json") | {
            key: effort[key] for key in ("parameters", "images_seen", "teraflop")
        }
    references = common.read_json(scores / "references.json")
    readers = common.read_json(scores / "readers.json")
    for name, group in readers.get("models", {}).items():
        models[name] |= comparison.manual(group)
    if "real" in readers:
        references["held_out"] |= comparison.manual(readers["real"])
    panels = {}
    for column in ("fd_alexnet", "kid_alexnet", "coverage"):
        values = [models[name][column] for name in comparison.MODELS]
        spread = [models[name].get(f"{column}_std", 0.0) for name in comparison.MODELS]
        panels[comparison.COLUMNS[column][0]] = (values, spread, references["held_out"][column])
    with (
        common.replacing(csv) as table,
        common.replacing(tree) as nested,
        common.replacing(markdown) as text,
        common.replacing(picture) as bars,
    ):
        comparison.table(models, references).to_csv(table)
        everything = {"models": models, "references": references}
        nested.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        text.write_text(comparison.markdown(models, references, comparison.readers_note(readers)), encoding="utf-8")
        plots.save(plots.dots(list(comparison.MODELS.values()), panels), bars)


if __name__ == "__main__":
    common.run(main)
