"""Put the scores of all models and references into one table: CSV, JSON, Markdown and a figure."""

import json
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer

from stages import _cli, _files
from synthmri.evaluation import uncertainty
from synthmri.reporting import comparison, plots


def main(
    scores: Annotated[Path, typer.Option(help="folder of <model>.json, references.json, raters.json")],
    rounds: Annotated[Path, typer.Option(help="folder of <model>.csv: scores against subsets of the test people")],
    efforts: Annotated[Path, typer.Option(help="folder of <model>.json: parameters, images seen, operations")],
    csv: Annotated[Path, typer.Option(help="CSV to write")],
    tree: Annotated[Path, typer.Option(help="JSON to write")],
    markdown: Annotated[Path, typer.Option(help="Markdown to write")],
    picture: Annotated[Path, typer.Option(help="PNG to write: the distances and the coverage")],
) -> None:
    """Nothing is computed here but which lead is larger than its uncertainty."""
    models = {}
    for name in comparison.MODELS:
        effort = _files.read_json(efforts / f"{name}.json")
        models[name] = _files.read_json(scores / f"{name}.json") | {
            key: effort[key] for key in comparison.EFFORT if key in effort
        }
    references = {name: _files.read_json(scores / f"{name}.json") for name in comparison.BASES}
    references |= _files.read_json(scores / "references.json")
    references["real"] |= comparison.asked(models["latent_diffusion"], "asked_of_real")
    if "implausible_of_real" in models["latent_diffusion"]:
        for name in ("implausible", "refused"):
            references["real"][name] = models["latent_diffusion"][f"{name}_of_real"]
    for row in (models["latent_diffusion"], *(references[name] for name in comparison.BASES)):
        row |= comparison.asked(row)
    raters = _files.read_json(scores / "raters.json")
    for name, group in raters.get("models", {}).items():
        models[name] |= comparison.manual(group)
    for name, group in raters.get("forced_choice", {}).items():
        models[name] |= comparison.told_apart(group)
    if "real" in raters:
        references["real"] |= comparison.manual(raters["real"])
    subsets = {name: pd.read_csv(rounds / f"{name}.csv") for name in comparison.MODELS}
    leaders = {}
    for column, (_, sign) in comparison.COLUMNS.items():
        known = [name for name in comparison.MODELS if column in models[name] and len(subsets[name].get(column, []))]
        if sign and len(known) == len(comparison.MODELS):  # a lead of unknown uncertainty is no lead
            leaders[column] = uncertainty.leader(
                {name: sign * models[name][column] for name in known},
                {name: sign * subsets[name][column].to_numpy() for name in known},
                people=round(models[known[0]]["test_people"]),
            )
    panels = {}
    for column in comparison.SPREAD:
        values = [models[name][column] for name in comparison.MODELS]
        spread = [models[name].get(f"{column}_std", 0.0) for name in comparison.MODELS]
        panels[comparison.COLUMNS[column][0]] = (values, spread, references["real"][column])
    with (
        _files.replacing(csv) as table,
        _files.replacing(tree) as nested,
        _files.replacing(markdown) as text,
        _files.replacing(picture) as bars,
    ):
        comparison.table(models, references).to_csv(table)
        everything = {"models": models, "references": references}
        nested.write_text(json.dumps(everything, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        notes = [comparison.finetuning(models, references), comparison.raters_note(raters)]
        words = comparison.markdown(models, references, leaders, uncertainty.SURE, "\n\n".join(filter(None, notes)))
        text.write_text(words, encoding="utf-8")
        plots.save(plots.dots(list(comparison.MODELS.values()), panels), bars)


if __name__ == "__main__":
    _cli.run(main)
