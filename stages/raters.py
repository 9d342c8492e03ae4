"""Score the answers of the reader study: `python -m stages.raters --help`."""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from reader_study import attention, choices, design, ratings
from stages import _cli, _files
from synthmri import imageset, params
from synthmri.reporting import comparison


def main(
    table: Annotated[Path, typer.Option("--ratings", help="CSV of ratings, from `synthmri study export`")],
    pairs: Annotated[Path, typer.Option("--choices", help="CSV of forced choices, from the same")],
    test: Annotated[Path, typer.Option(help="ImageSet of the test slices")],
    samples: Annotated[Path, typer.Option(help="folder of each model's ImageSet")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
) -> None:
    """Scores of models and of real, agreement, and who attended. Only answers about images that are here now count."""
    p = params.read(_cli.PARAMS, "raters", ratings.Raters)
    rated, chosen = ratings.read(table, "rating"), ratings.read(pairs, "forced_choice")
    tree: dict[str, dict] = {"counts": {"ratings": 0.0, "of_other_images": 0.0}}
    if len(rated) or len(chosen):
        here = _hashes(test, samples)
        present = [_present(frame, here) for frame in (rated, chosen)]
        left_out = len(rated) + len(chosen) - sum(map(len, present))
        rated, chosen = present
        controls = pd.concat([attention.of_ratings(rated), attention.of_choices(chosen)], ignore_index=True)
        answers = pd.concat([rated.assign(answer=rated["realism"].astype(str)), chosen.assign(answer=chosen["chosen"])])
        attended = attention.summary(controls, answers)
        missed = [rater for rater, scores in attended.items() if scores["inattentive"]]
        models = list(comparison.MODELS)
        tree = ratings.summary(rated, models, p, missed)
        tree["forced_choice"] = choices.summary(chosen, models, p, missed)
        simulated = imageset.read(test).meta.get("data", {}).get("source") == "simulated"
        unknown = sum(scores["controls"] < attention.LEAST for scores in attended.values())
        tree["counts"] = {
            "ratings": len(answers), "of_other_images": left_out, "simulated": simulated, "raters": len(attended),
            "inattentive": len(missed), "without_controls": unknown,
        }  # fmt: skip
        tree["attention"] = attended
        tree["packets"] = {packet: len(part) for packet, part in answers.groupby("packet")}
    with _files.replacing(metrics) as part:
        _files.write_metrics(part, {name: group for name, group in tree.items() if group})


def _hashes(test: Path, samples: Path) -> dict[str, set[str]]:
    """Source -> hashes of its images; controls are made of test slices, always in the same way."""
    sets = {design.REAL: test} | {name: samples / name for name in comparison.MODELS}
    here = {name: {design.sha256(image) for image in imageset.read(folder).images} for name, folder in sets.items()}
    return here | {
        design.CONTROL: {design.sha256(design.spoiled(np.asarray(image))) for image in imageset.read(test).images}
    }


def _present(frame: pd.DataFrame, here: dict[str, set[str]]) -> pd.DataFrame:
    """The answers about images that are here; the others are named."""
    counted = [row.sha256 in here.get(row.source, ()) for row in frame.itertuples()]
    if "sha256_real" in frame:
        counted = [ok and real in here[design.REAL] for ok, real in zip(counted, frame["sha256_real"], strict=True)]
    present = frame[np.array(counted, dtype=bool)]
    for packet, part in frame.drop(index=present.index).groupby("packet"):
        print(f"{len(part)} ratings of packet {packet} are of images that are no longer here: left out; "
              "`synthmri study create` makes a packet of the present ones", file=sys.stderr)  # fmt: skip
    return present


if __name__ == "__main__":
    _cli.run(main)
