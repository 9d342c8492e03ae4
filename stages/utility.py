"""Does it help to train on synthetic slices? `python -m stages.utility --help`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer

from stages import _cli, _files
from synthmri import imageset, params
from synthmri.evaluation import auroc, downstream
from synthmri.reporting import plots

CAVEATS = """\
Intervals are 95 %, over test {people} and trainings; p is of a permutation test over {people}, without correction
for the number of rows, and speaks of the classifiers as they were trained here: where it disagrees with the interval,
which holds the luck of training too, the interval counts. All trainings have as many steps. The generator learned from
**all** real training slices, so rows below 100 % say what synthetic slices give to one who has few of their own, not
what a generator of so few would.
"""
NO_SUBJECTS = (
    "Whose the slices are is not known: runs of {block} files stand for people, so the intervals are optimistic.\n"
)


def main(
    train: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    test: Annotated[Path, typer.Option(help="ImageSet of the test slices")],
    samples: Annotated[Path, typer.Option(help="ImageSet of synthetic slices, with labels")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    markdown: Annotated[Path, typer.Option(help="Markdown to write: the answer in a sentence, and the table")],
    picture: Annotated[Path, typer.Option(help="PNG to write: AUROC over the share of real people")],
) -> None:
    """A small classifier of the manifest's label by section `utility`: real, synthetic and both, on the test people."""
    _cli.start()
    torch.set_num_threads(1)  # on pictures this small threads wait for each other more than they work
    p = params.read(_cli.PARAMS, "utility", downstream.Utility)
    sets = {"train": imageset.read(train), "test": imageset.read(test), "samples": imageset.read(samples)}
    names = sorted(set(sets["train"].manifest["label"]) - {"", "unknown"})
    # The only knowledge of how many pictures in a row are of one person is this parameter of the splitting.
    block = sets["train"].meta.get("data", {}).get("border_gap", 1)
    rows, classes, people = {}, {}, {}
    for key, found in sets.items():
        label = found.manifest["label"] if "label" in found.manifest else np.full(len(found), "")
        number = np.array([names.index(each) if each in names else -1 for each in label], np.int64)
        rows[key] = np.flatnonzero(number >= 0)
        classes[key] = number[rows[key]]
        if key != "samples":
            people[key] = auroc.people(found.manifest.iloc[rows[key]].reset_index(drop=True), block)
    counts = {
        "classes": len(names),
        "train_subjects": len(np.unique(people["train"])), "train_slices": len(rows["train"]),
        "test_subjects": len(np.unique(people["test"])), "test_slices": len(rows["test"]),
        "synthetic_slices": len(rows["samples"]),
    }  # fmt: skip
    arms, lines = {}, {}
    if why := downstream.obstacle(classes["train"], (classes["test"], people["test"]), classes["samples"], names):
        text = f"Whether synthetic slices help a classifier was not measured: {why}.\n"
    else:
        images = {key: downstream.shrunk(found.images[rows[key]], p.image_px) for key, found in sets.items()}
        real, test_set = (downstream.Labelled(images[key], classes[key], people[key]) for key in ("train", "test"))
        done = iter(_cli.progress(range(downstream.cost(p)), "trained classifiers"))
        synthetic = (images["samples"], classes["samples"])
        arms = downstream.measured(real, test_set, synthetic, len(names), p, seed=_cli.seed(), tick=lambda: next(done))
        known = (sets["test"].manifest["subject"] != "").any()
        text = "\n\n".join(
            [
                downstream.sentence(arms, names),
                f"Test: {counts['test_slices']} slices of {counts['test_subjects']} "
                f"{'people' if known else 'runs of files'}; {p.trainings} trainings each, at {p.image_px} px, with "
                f"{counts['synthetic_slices']} synthetic slices.",
                downstream.markdown(arms),
                CAVEATS.format(people="people" if known else "runs of files")
                + ("" if known else NO_SUBJECTS.format(block=block)),
            ]
        )
        for arm, shares in arms.items():
            # Without real slices there is one point, at no real people.
            values = [[scores[name] for scores in shares.values()] for name in ("auroc", "auroc_low", "auroc_high")]
            lines[downstream.ARMS[arm][0]] = ([float(share) for share in shares], *values)
    figure = plots.intervals(
        lines, x_label="% of the real training people", y_label="AUROC on the test people", chance=0.5,
        title="Classifier with and without synthetic slices" if lines else "not measured: see utility.md",
    )  # fmt: skip
    with _files.replacing(metrics) as tree, _files.replacing(markdown) as words, _files.replacing(picture) as drawn:
        _files.write_metrics(tree, counts | arms)
        words.write_text(text, encoding="utf-8")
        plots.save(figure, drawn)


if __name__ == "__main__":
    _cli.run(main)
