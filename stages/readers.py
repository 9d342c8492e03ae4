"""Score the ratings of the reader study: `python -m stages.readers --help`."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from reader_study import design, ratings
from stages import _cli, _files
from synthmri import imageset, params
from synthmri.reporting import comparison


def main(
    table: Annotated[Path, typer.Option("--ratings", help="CSV of ratings, from `synthmri study export`")],
    test: Annotated[Path, typer.Option(help="ImageSet of the test slices")],
    samples: Annotated[Path, typer.Option(help="folder of each model's ImageSet")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
) -> None:
    """Scores of models and of real, and agreement. Only ratings of images that are here now count."""
    p = params.read(_cli.PARAMS, "readers", ratings.Readers)
    frame = ratings.read(table)
    tree: dict[str, dict] = {"counts": {"ratings": 0.0, "of_other_images": 0.0}}
    if len(frame):
        sets = {ratings.REAL: test} | {name: samples / name for name in comparison.MODELS}
        here = {name: {design.sha256(image) for image in imageset.read(folder).images} for name, folder in sets.items()}
        counted = [row.sha256 in here.get(row.source, ()) for row in frame.itertuples()]
        present = frame[counted]
        for packet, part in frame.drop(index=present.index).groupby("packet"):
            print(f"{len(part)} ratings of packet {packet} are of images that are no longer here: left out; "
                  "`synthmri study create` makes a packet of the present ones", file=sys.stderr)  # fmt: skip
        tree = ratings.summary(present, list(comparison.MODELS), p)
        simulated = imageset.read(test).meta.get("data", {}).get("source") == "simulated"
        tree["counts"] = {"ratings": len(present), "of_other_images": len(frame) - len(present), "simulated": simulated}
        tree["packets"] = {packet: len(part) for packet, part in present.groupby("packet")}
    with _files.replacing(metrics) as part:
        _files.write_metrics(part, {name: group for name, group in tree.items() if group})


if __name__ == "__main__":
    _cli.run(main)
