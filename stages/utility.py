"""Does it help to train on synthetic slices? `python -m stages.utility --help`."""

import itertools
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import torch
import typer

from stages import _cli, _files, _people
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import classifier, downstream, usefulness
from synthmri.reporting import plots

CAVEATS = """\
The rival, in bold, is of the arms without synthetic slices that which tells the labels of the *validation* slices best,
at each share{untold}. Intervals are 95 %, over test {people} and trainings; p is of a permutation test over {people},
by Holm over the arms with all people and over those of all smaller shares, and speaks of the classifiers as they were
trained here: an arm is said to help where the interval, which holds the luck of training too, agrees. The generator
learned from **all** real training slices, so rows below 100 % say what synthetic slices, even copies, give to one who
has few of their own, not what a generator of so few would.
"""
UNTOLD = ", or, as those hold one label, the one with augmentation"
EXTERNAL = "## On the external set"


class Part(NamedTuple):
    """Slices of known labels. images: uint8 (N, H, W); labels, who: (N,); subjects: their names, as far as known;
    runs: how many pictures in a row stand for a person where some are not, else 0."""

    images: np.ndarray
    labels: np.ndarray
    who: np.ndarray
    subjects: set[str]
    runs: int

    def without(self, rows: np.ndarray) -> "Part":
        """Less the slices where `rows` (N,) is True."""
        who = np.unique(self.who[~rows], return_inverse=True)[1]
        return self._replace(images=self.images[~rows], labels=self.labels[~rows], who=who)


def main(
    train: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    validation: Annotated[Path, typer.Option(help="ImageSet of the validation slices")],
    test: Annotated[Path, typer.Option(help="ImageSet of the test slices")],
    samples: Annotated[Path, typer.Option(help="ImageSet of synthetic slices, with labels")],
    external: Annotated[Path, typer.Option(help="folder of what section `utility` names; DVC watches it")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    markdown: Annotated[Path, typer.Option(help="Markdown to write: the answer in a sentence, and the table")],
    picture: Annotated[Path, typer.Option(help="PNG to write: AUROC over the share of real people")],
) -> None:
    """A classifier of the manifest's label by section `utility`: real, synthetic and both, on the test people."""
    runtime = _cli.start()
    p = params.read(_cli.PARAMS, "utility", downstream.Utility)
    sets = {"train": train, "validation": validation, "test": test, "synthetic": samples}
    if p.external:
        sets["external"] = Path(_files.watched(p.external, external, "utility.external"))
    sets = {name: imageset.read(folder) for name, folder in sets.items()}
    names = sorted(set(_labels(sets["train"])) - {"", "unknown"})
    parts = {name: _part(found, names) for name, found in sets.items()}
    tests = {name: parts[name] for name in ("test", "external") if name in parts}
    # Nothing learns from a person or a slice that is judged.
    bound = sets["test"].meta.get("data", {}).get("duplicate_correlation", 0.99)
    leaked = dict.fromkeys(("train", "validation", "synthetic"), 0)
    for (name, part), other in itertools.product(tests.items(), leaked):
        if both := part.subjects & parts[other].subjects:
            raise UserError(f"{len(both)} subject(s) of the {name} slices are in {other} too; split them anew")
        copies = downstream.copied(parts[other].images, part.images, bound)
        leaked[other] += int(copies.sum())
        parts[other] = parts[other].without(copies)
    counts = {"classes": len(names), "synthetic_slices": len(parts["synthetic"].labels)}
    counts |= {f"{name}_slices_left_out": number for name, number in leaked.items()}
    for name in ("train", *tests):
        counts |= {f"{name}_subjects": len(np.unique(parts[name].who)), f"{name}_slices": len(parts[name].labels)}
    arms, lines = {}, {}
    reasons = {
        name: downstream.obstacle(parts["train"].labels, (part.labels, part.who), parts["synthetic"].labels, names)
        for name, part in tests.items()
    }
    tests = {name: part for name, part in tests.items() if not reasons[name]}
    if why := reasons["test"]:
        text = f"Whether synthetic slices help a classifier was not measured: {why}.\n"
    else:
        learnt = {
            name: classifier.Labelled(
                classifier.seen(
                    part.images, p.image_px, count=p.views if name in ("train", "synthetic") else 1, seed=_cli.seed(),
                    device=runtime.device,
                ),
                part.labels, part.who,
            )
            for name, part in _cli.progress(parts.items(), "features of slices", len(parts))
            if not reasons.get(name)
        }  # fmt: skip
        torch.set_num_threads(1)  # on layers this small threads wait for each other more than they work
        done = iter(_cli.progress(range(downstream.cost(learnt["train"], p)), "trained arms"))
        arms = downstream.measured(
            learnt["train"], learnt["validation"], {name: learnt[name] for name in tests}, learnt["synthetic"], names,
            p, seed=_cli.seed(), tick=lambda: next(done),
        )  # fmt: skip
        text = "\n\n".join(_chapter(name, part, arms[name], names, p, counts) for name, part in tests.items())
        if why := reasons.get("external"):
            text += f"\n\n{EXTERNAL}\n\nNot measured: of the external set, {why}.\n"
        for name, arm in sorted(downstream.ARMS.items(), key=lambda item: item[1].real):  # without any at 0 %, first
            shares = arms["test"][name]
            values = [[scores[key] for scores in shares.values()] for key in ("auroc", "auroc_low", "auroc_high")]
            lines[arm.title] = ([f"{share} %" for share in shares], *values)
    figure = plots.intervals(
        lines, x_label="of the real training people", y_label="AUROC on the test people", chance=0.5,
        title="Classifier with and without synthetic slices" if lines else "not measured: see utility.md",
    )  # fmt: skip
    tree = counts | arms.get("test", {}) | ({"external": arms["external"]} if "external" in arms else {})
    with _files.replacing(metrics) as numbers, _files.replacing(markdown) as words, _files.replacing(picture) as drawn:
        _files.write_metrics(numbers, tree)
        words.write_text(text, encoding="utf-8")
        plots.save(figure, drawn)


def _labels(found: imageset.ImageSet) -> np.ndarray:
    return found.manifest["label"].to_numpy(str) if "label" in found.manifest else np.full(len(found), "")


def _part(found: imageset.ImageSet, names: list[str]) -> Part:
    """The slices whose label is one of `names`."""
    number = np.array([names.index(each) if each in names else -1 for each in _labels(found)], np.int64)
    rows = np.flatnonzero(number >= 0)
    manifest = found.manifest.iloc[rows].reset_index(drop=True)
    who, runs = _people.of(manifest, found.meta)
    subjects = set(manifest.get("subject", ())) - {""}
    return Part(np.asarray(found.images[rows]), number[rows], who, subjects, runs)


def _chapter(name: str, part: Part, arms: dict, names: list[str], p: downstream.Utility, counts: dict) -> str:
    """The answer, how it was got and the table, of one set of test people."""
    people = "runs of files" if part.runs else "people"
    told = any("val_auroc" in scores for shares in arms.values() for scores in shares.values())
    left = {key: counts[f"{key}_slices_left_out"] for key in ("train", "validation", "synthetic")}
    left = [f"{number} {key}" for key, number in left.items() if number]
    return "\n\n".join(
        [
            *([EXTERNAL] if name == "external" else []),
            usefulness.sentence(arms, names),
            f"Test: {counts[f'{name}_slices']} slices of {counts[f'{name}_subjects']} {people}; {p.trainings} "
            f"trainings each, at {p.image_px} px, with {counts['synthetic_slices']} synthetic slices."
            + (f" Left out, as they are test slices: {', '.join(left)} slices." if left else ""),
            usefulness.markdown(arms),
            CAVEATS.format(people=people, untold="" if told else UNTOLD) + _people.caveat(part.runs),
        ]
    )


if __name__ == "__main__":
    _cli.run(main)
