"""Do synthetic pairs of image and mask help? `python -m stages.segment --help`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from PIL import Image

from stages import _cli, _files, _people
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import downstream, segmentation
from synthmri.reporting import plots
from synthmri.training import masks

SHOWN = 16  # pairs in the picture
CAVEATS = """\
"Left clear": the share of test slices without lesions in which none is drawn. The rival, in bold, is the better of the
arms without synthetic pairs on the *validation* people. Intervals are 95 %, over test {kind} and {trainings} trainings,
which is few, so that they are somewhat too narrow; p swaps two arms person by person and is by Holm over the arms of a
share. {few}
The generator and its masks were learnt from **all** real training slices, so rows below 100 % say what they give to one
who has few of their own, not what a generator of so few would.
"""


def main(
    train: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    validation: Annotated[Path, typer.Option(help="ImageSet of the validation slices")],
    test: Annotated[Path, typer.Option(help="ImageSet of the test slices")],
    samples: Annotated[Path, typer.Option(help="ImageSet of synthetic slices")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    markdown: Annotated[Path, typer.Option(help="Markdown to write: the answer in a sentence, and the table")],
    picture: Annotated[Path, typer.Option(help="PNG to write: synthetic slices with the outlines of their masks")],
) -> None:
    """A network that draws masks, trained on real pairs, synthetic ones and both, by Dice on the test people.

    Its size is that of section `utility`, its steps are twice those.
    """
    _cli.start()
    p, seed = params.read(_cli.PARAMS, "utility", downstream.Utility), _cli.seed()
    sets = {name: imageset.read(folder) for name, folder in
            {"training": train, "validation": validation, "test": test, "synthetic": samples}.items()}  # fmt: skip
    made = sets["synthetic"]
    _apart(sets)
    without = [name for name, found in sets.items() if found.masks is None]
    counts = {
        f"{name}_slices_with_lesions": len(masks.marked(found.masks)) if found.masks is not None and len(found) else 0
        for name, found in sets.items()
    }
    tree: dict = counts
    marked: dict = {}
    if without:
        why = f"there are no masks of the {' and '.join(without)} slices"
    else:
        marked = _by_label(sets)
        against = _against(sets["synthetic"], marked)
        counts["synthetic_slices_against_their_label"] = int(against.sum())
        sets["synthetic"] = sets["synthetic"].take(np.flatnonzero(~against))
        parts = {name: _pairs(found, p.image_px) for name, found in sets.items()}
        why = segmentation.obstacle(*parts.values())
    if why:
        text = f"Whether synthetic pairs of image and mask help was not measured: {why}.\n"
    else:
        arms = segmentation.measured(
            *parts.values(), segmentation.LONGER * p.steps, seed=seed,
            progress=lambda plans, count: _cli.progress(plans, "trained networks", count),
        )  # fmt: skip
        people = len(segmentation.ill(parts["test"]))
        runs = _people.of(sets["test"].manifest, sets["test"].meta)[1]
        kind = "runs of files" if runs else "people"
        least = segmentation.smallest_p(people)
        few = f"Of {people} {kind} with lesions no p below {least:.2g} can come." if least > 0.001 else ""
        tree = counts | {"test_subjects_with_lesions": people} | ({"marked": marked} if marked else {}) | arms
        text = "\n\n".join(
            [
                segmentation.sentence(arms),
                f"Test: {people} {kind} with lesions; {segmentation.TRAININGS} trainings each, at {p.image_px} px. "
                f"{counts['synthetic_slices_with_lesions']} of {len(against)} synthetic slices have a mask, "
                f"{counts['training_slices_with_lesions']} of {len(sets['training'])} real training slices."
                + "".join(
                    f" Of those called {label}: {100 * shares['synthetic']:.0f} % of the synthetic and "
                    f"{100 * shares['training']:.0f} % of the training slices."
                    for label, shares in marked.items()
                )
                + f" {counts['synthetic_slices_against_their_label']} synthetic slices whose mask is against their "
                "label, where all training slices of it are alike, are left out.",
                segmentation.markdown(arms),
                CAVEATS.format(trainings=segmentation.TRAININGS, few=few, kind=kind) + _people.caveat(runs),
            ]
        )
    with _files.replacing(metrics) as numbers, _files.replacing(markdown) as words, _files.replacing(picture) as sheet:
        _files.write_metrics(numbers, tree)
        words.write_text(text + "\n" * (not text.endswith("\n")), encoding="utf-8")
        plots.save(_sheet(made), sheet)


def _apart(sets: dict[str, imageset.ImageSet]) -> None:
    """Leave out, in place, slices that are test slices. Raises UserError where a test subject is among the others."""
    test = sets["test"]
    bound = test.meta.get("data", {}).get("duplicate_correlation", 0.99)
    for name in ("training", "validation", "synthetic"):
        both = set(sets[name].manifest.get("subject", ())) & set(test.manifest["subject"]) - {""}
        if both:
            raise UserError(f"{len(both)} subject(s) of the test slices are in {name} too; split them anew")
        copies = downstream.copied(sets[name].images, test.images, bound)
        sets[name] = sets[name].take(np.flatnonzero(~copies))


def _by_label(sets: dict[str, imageset.ImageSet]) -> dict[str, dict[str, float]]:
    """Label -> the share of the training and of the synthetic slices with it that have a mask; of known labels alone.

    Synthetic slices have the label that was asked for: where these shares differ, prompts are not heeded.
    """
    both = {name: sets[name] for name in ("training", "synthetic") if "label" in sets[name].manifest}
    has = {name: found.masks.any(axis=(1, 2)) for name, found in both.items()}
    of = {name: found.manifest["label"].to_numpy(str) for name, found in both.items()}
    labels = set.intersection(*map(set, of.values())) - {"", "unknown"} if len(of) == 2 else set()
    return {label: {name: float(has[name][of[name] == label].mean()) for name in both} for label in sorted(labels)}


def _against(made: imageset.ImageSet, marked: dict[str, dict[str, float]]) -> np.ndarray:
    """bool (N,): a mask where no training slice of that label has one, or none where all have."""
    has, label = made.masks.any(axis=(1, 2)), made.manifest.get("label", pd.Series("", made.manifest.index))
    expected = label.map({name: shares["training"] for name, shares in marked.items()}).to_numpy(float)
    return (has & (expected == 0)) | (~has & (expected == 1))


def _pairs(found: imageset.ImageSet, image_px: int) -> segmentation.Pairs:
    return segmentation.pairs(found.images, found.masks, _people.of(found.manifest, found.meta)[0], image_px)


def _sheet(made: imageset.ImageSet) -> Image.Image:
    """Synthetic slices with a mask, at even steps; the first ones where there is none."""
    masks = np.zeros(made.images.shape, np.uint8) if made.masks is None else np.asarray(made.masks)
    marked = np.flatnonzero(masks.any(axis=(1, 2)))
    rows = marked[imageset.evenly(len(marked), SHOWN)] if len(marked) else np.arange(min(SHOWN, len(made)))
    return plots.contact_sheet(plots.outlined(np.asarray(made.images[rows]), masks[rows]), columns=8)


if __name__ == "__main__":
    _cli.run(main)
