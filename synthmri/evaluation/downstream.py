"""What synthetic slices are good for: a classifier that trains on real ones, synthetic ones, or both.

It learns the manifest's `label` by a linear layer on frozen features of ImageNet EfficientNet-Lite0, and is judged on
the test people, with as few real people as a share says, against the best that it reaches without synthetic slices.
"""

import math
from collections.abc import Callable
from typing import Annotated, NamedTuple

import numpy as np
import torch
from pydantic import Field, field_validator
from scipy.stats import rankdata
from statsmodels.stats.multitest import multipletests

from synthmri import streams
from synthmri.evaluation import auroc
from synthmri.evaluation.classifier import Labelled, Phase, predictions
from synthmri.imageset import pieces
from synthmri.params import Section
from synthmri.scans import splits


class Arm(NamedTuple):
    """What a classifier trains on. real: whether on real slices; synthetic: on which synthetic ones, "" none, "all",
    "filtered" or "rarest" (of the label with fewest real slices); ratio: synthetic slices of a batch to one real one;
    first: on the synthetic ones first, on the real ones after; repeats: passes in place of one; augment: whether on
    augmented views too."""

    title: str
    real: bool = True
    synthetic: str = ""
    ratio: float = 0.0
    first: bool = False
    repeats: int = 1
    augment: bool = True


ARMS = {
    "real": Arm("real", augment=False),
    "real_augmented": Arm("real, augmented"),
    "real_repeated": Arm("real, augmented, five times as long", repeats=5),  # as many steps as both_4
    "synthetic": Arm("synthetic alone", real=False, synthetic="all"),
    "both_quarter": Arm("real and synthetic 1 : 1/4", synthetic="all", ratio=0.25),
    "both_1": Arm("real and synthetic 1 : 1", synthetic="all", ratio=1),
    "both_4": Arm("real and synthetic 1 : 4", synthetic="all", ratio=4),
    "synthetic_first": Arm("synthetic first, real after", synthetic="all", first=True),
    "filtered": Arm("real and filtered synthetic 1 : 1", synthetic="filtered", ratio=1),
    "rarest": Arm("real and synthetic of the rarest label 1 : 1", synthetic="rarest", ratio=1),
}
RIVALS = tuple(name for name, arm in ARMS.items() if not arm.synthetic)
STRONGEST = (
    "real_augmented"  # the rival where validation people do not tell: the arms with synthetic slices augment too
)
FILTER = "real_augmented"  # the arm whose classifier filters: of the same real slices, so that no others leak in
RECOGNISED = 0.5  # least probability of its label that the filter asks for
FARTHEST = 0.1  # share of the synthetic slices, farthest from all real ones, that the filter takes for implausible
SCORES = ("auroc", "f1", "brier")
SWAPS = 5 * auroc.ROUNDS  # of a permutation test: its p must be fine enough for Holm over some thirty arms


class Utility(Section):
    """Section `utility`."""

    image_px: int = Field(ge=32, le=512)
    views: int = Field(ge=2, le=64)
    steps: int = Field(ge=1)
    fractions: tuple[Annotated[float, Field(gt=0, le=1)], ...] = Field(min_length=1)
    trainings: int = Field(ge=1, le=100)
    external: str

    @field_validator("fractions")
    @classmethod
    def _whole(cls, fractions):
        if 1 not in fractions:
            raise ValueError("1.0 must be one of them: all real slices are what the verdict is about")
        return fractions


# Whom there is --------------------------------------------------------------------------------------------------------


def kinds(labels: np.ndarray, who: np.ndarray) -> np.ndarray:
    """The class of each person 0 .. P - 1; of those whose slices differ in it, a number for each set of classes."""
    classes = int(labels.max()) + 1
    held = np.zeros((int(who.max()) + 1, classes), bool)
    held[who, labels] = True
    sets = classes + np.unique(held, axis=0, return_inverse=True)[1].ravel()
    return np.where(held.sum(axis=1) == 1, held.argmax(axis=1), sets)


def few(labels: np.ndarray, who: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """The rows of a share of the people of each class, at least one of each; a smaller share is part of a larger."""
    of, kept = kinds(labels, who), []
    for label in np.unique(of):
        members = np.random.default_rng([seed, int(label)]).permutation(np.flatnonzero(of == label))
        kept += list(members[: max(1, round(fraction * len(members)))])
    return np.flatnonzero(np.isin(who, kept))


def obstacle(train: np.ndarray, test: tuple[np.ndarray, np.ndarray], synthetic: np.ndarray, names: list[str]) -> str:
    """Why the experiment cannot be done, or "". train, synthetic: labels (N,); test: labels and who, (M,) each."""
    if len(names) < 2:
        return f"the training slices have {len(names)} label(s), and a classifier needs two"
    labels, who = test
    for label, name in enumerate(names):
        people = len(np.unique(who[labels == label]))
        if people < 2:
            return f"{people} test subject(s) have the label `{name}`, and an interval needs two"
        if not (synthetic == label).any():
            return f"no synthetic slice was drawn for the label `{name}`; prompt.template needs {{label}}"
    return ""


def copied(images: np.ndarray, judged: np.ndarray, correlation: float) -> np.ndarray:
    """bool (N,): which of the images is a slice of `judged`, or its mirror image: a correlation of 32 x 32 px above.

    images: uint8 (N, H, W); judged: uint8 (M, H, W). What a classifier may not learn from.
    """
    found = np.zeros(len(images), bool)
    for start, piece in pieces(images, splits.BLOCK):
        both = [splits.thumbnails(view) for view in (piece, piece[:, :, ::-1])]
        for _, other in pieces(judged, splits.BLOCK):
            known = splits.thumbnails(other).T
            for view in both:
                found[start : start + len(piece)] |= (view @ known).max(1) > correlation
    return found


# What an arm trains on ------------------------------------------------------------------------------------------------


def plan(arm: Arm, real: np.ndarray, synthetic: np.ndarray, p: Utility) -> list[Phase]:
    """Phases of an arm on rows of real slices, as many of these whatever it has of synthetic ones; without any of
    those the real ones take their place, so that an arm never trains for less."""
    if arm.first or not arm.real:
        alone = Phase(p.steps, ((synthetic, 1.0),))
        return [alone, Phase(p.steps, ((real, 1.0),))] if arm.real else [alone]
    steps = round(p.steps * arm.repeats * (1 + arm.ratio))
    sources = ((real, 1.0), (synthetic, arm.ratio)) if arm.synthetic and len(synthetic) else ((real, 1.0),)
    return [Phase(steps, sources)]


def filtered(
    probabilities: np.ndarray, labels: np.ndarray, found: np.ndarray, real: np.ndarray, bound: float
) -> np.ndarray:
    """bool (S,): which synthetic slices are recognised with more than `bound` as what their prompt asked for, and are
    not among the FARTHEST from all real slices. probabilities: (S, classes); found: (S, D); real: (N, D)."""
    spread = real.std(0) + 1e-3
    ours, theirs = (torch.from_numpy(x / spread) for x in (found, real))
    away = torch.cdist(ours, theirs).min(1).values.numpy()
    return (probabilities[np.arange(len(labels)), labels] > bound) & (away <= np.quantile(away, 1 - FARTHEST))


# The experiment -------------------------------------------------------------------------------------------------------


def measured(
    train: Labelled, val: Labelled, tests: dict[str, Labelled], synthetic: Labelled, names: list[str], p: Utility, *,
    seed: int, tick: Callable[[], None] = lambda: None,
) -> dict[str, dict[str, dict[str, dict]]]:  # fmt: skip
    """Name of a test set -> arm -> per cent of the real training people -> scores.

    A share that gives no more people than a smaller one is left out. `auroc` (one class against the rest, mean over
    classes), `f1` (macro) and `brier` (squared distance of the probabilities from the truth, 0 to 2, mean over slices
    of each class, then over classes) are means over p.trainings trainings that differ in the people drawn and the
    batches; _low and _high are 95 % intervals that resample test people and trainings; `labels` has for each label its
    `auroc` and `recall`.

    Of the arms without synthetic slices the one of the largest AUROC on the *validation* people (`val_auroc`, left out
    where these hold one label) is the rival of that share (`rival` is 1), or else STRONGEST. Of the others `_gain` is
    the difference to it (of synthetic slices alone: to that of all people), `_p` its permutation test over people,
    two-sided, and `auroc_p_holm` that corrected for all arms with synthetic slices and all people, or for all at all
    smaller shares (Holm 1979).
    """
    count, classes = len(train.labels), len(names)
    pool = Labelled(
        np.concatenate([train.views, synthetic.views]), np.concatenate([train.labels, synthetic.labels]), np.zeros(0)
    )
    luck = [streams.number(seed, "utility", k) for k in range(p.trainings)]
    judged = [part.views[:, 0] for part in (synthetic, val, *tests.values())]
    used = _used(train, p, luck[0])
    most = list(used)[-1]
    made: dict[tuple[str, str], list[np.ndarray]] = {}  # probabilities (K, M, C) of each of `judged`
    kept: dict[tuple[str, str], float] = {}  # how many synthetic slices, the mean over trainings
    for share in used:
        drawn = [few(train.labels, train.who, float(share) / 100, number) for number in luck]
        for name, arm in ARMS.items():
            if not arm.real and share != most:
                continue
            key = (name, share if arm.real else "0")
            chosen = [
                _synthetic(arm, train, rows, synthetic, made.get((FILTER, share)), k, p) for k, rows in enumerate(drawn)
            ]
            plans = [plan(arm, rows, count + more, p) for rows, more in zip(drawn, chosen, strict=True)]
            made[key] = predictions(pool, plans, judged, classes, augment=arm.augment, seeds=luck)
            kept[key] = float(np.mean([len(more) for more in chosen]))
            tick()
    known = {key: area for key, values in made.items() if not math.isnan(area := _area(values[1], val))}
    rivals = {
        share: max(RIVALS, key=lambda name, at=share: (known.get((name, at), 0.0), name == STRONGEST)) for share in used
    }
    result: dict[str, dict[str, dict[str, dict]]] = {}
    for number, (title, test) in enumerate(tests.items(), start=2):
        tree = result.setdefault(title, {})
        for name, share in sorted(made, key=lambda key: list(ARMS).index(key[0])):
            values = made[name, share]
            subjects, slices = used.get(share, (0.0, 0.0))
            scores = {
                "train_subjects": subjects, "train_slices": slices, "synthetic_slices": kept[name, share],
            } | _scores(values[number], test, names)  # fmt: skip
            scores |= {"val_auroc": known[name, share]} if (name, share) in known else {}
            if ARMS[name].synthetic:
                at = share if ARMS[name].real else most
                scores |= _against(values[number], made[rivals[at], at][number], test)
            else:
                scores["rival"] = float(name == rivals[share])
            tree.setdefault(name, {})[share] = scores
        _correct(tree, most)
    return result


def cost(train: Labelled, p: Utility) -> int:
    """How often `measured` ticks."""
    return sum(arm.real for arm in ARMS.values()) * len(_used(train, p, 0)) + sum(not arm.real for arm in ARMS.values())


def _used(train: Labelled, p: Utility, seed: int) -> dict[str, tuple[float, float]]:
    """Share in per cent -> people and slices."""
    used: dict[str, tuple[float, float]] = {}
    for fraction in sorted(p.fractions):
        rows = few(train.labels, train.who, fraction, seed)
        size = float(len(np.unique(train.who[rows])))
        if size not in (people for people, _ in used.values()):
            used[f"{100 * fraction:g}"] = (size, float(len(rows)))
    if "100" not in used:  # a smaller share gave all people
        used["100"] = used.pop(list(used)[-1])
    return used


def _synthetic(
    arm: Arm, train: Labelled, rows: np.ndarray, synthetic: Labelled, made: list[np.ndarray] | None, k: int, p: Utility
) -> np.ndarray:
    """Which synthetic slices training k of an arm has, beside the real `rows`."""
    if arm.synthetic == "filtered":
        found, real = synthetic.views[:, 0], train.views[rows, 0]
        return np.flatnonzero(filtered(made[0][k], synthetic.labels, found, real, RECOGNISED))
    if arm.synthetic == "rarest":
        return np.flatnonzero(synthetic.labels == np.bincount(train.labels[rows]).argmin())
    return np.arange(len(synthetic.labels) if arm.synthetic else 0)


def _area(values: np.ndarray, test: Labelled) -> float:
    """The mean AUROC over trainings and those classes that the people have and lack; NaN where there are none."""
    people, held = np.zeros(len(test.who), int), range(values.shape[2])
    one = np.ones((1, 1))
    areas = [
        [auroc.area(*auroc.tables(each[:, c], test.labels == c, people, 1), one)[0] for c in held] for each in values
    ]
    known = np.array(areas)[~np.isnan(areas)]
    return float(known.mean()) if len(known) else math.nan


class _Table(NamedTuple):
    """Of one training, by person: for each class the tables of its ROC curve; (count, C, C) of true and predicted
    classes; (count, C) of squared distances."""

    curves: list
    confusion: np.ndarray
    distance: np.ndarray


def _tables(probabilities: np.ndarray, labels: np.ndarray, who: np.ndarray, count: int, ranks=None) -> _Table:
    """ranks: in place of the probabilities where only their order counts."""
    classes = probabilities.shape[1]
    ranks = probabilities if ranks is None else ranks
    curves = [auroc.tables(ranks[:, c], labels == c, who, count) for c in range(classes)]
    confusion, distance = np.zeros((count, classes, classes)), np.zeros((count, classes))
    np.add.at(confusion, (who, labels, probabilities.argmax(axis=1)), 1)
    np.add.at(distance, (who, labels), ((probabilities - np.eye(classes)[labels]) ** 2).sum(axis=1))
    return _Table(curves, confusion, distance)


def _all(table: _Table, weights: np.ndarray) -> np.ndarray:
    """SCORES under weights of people (R, count): (3, R)."""
    areas = np.mean([auroc.area(wins, pairs, weights) for wins, pairs in table.curves], axis=0)
    total = np.einsum("rg,gtp->rtp", weights, table.confusion)
    hits = np.einsum("rcc->rc", total)
    f1 = 2 * hits / np.maximum(total.sum(1) + total.sum(2), 1e-12)
    brier = (weights @ table.distance) / np.maximum(total.sum(2), 1e-12)
    return np.stack([areas, f1.mean(axis=1), brier.mean(axis=1)])


def _resampled(tables: list[_Table], of: np.ndarray) -> np.ndarray:
    """(3, rounds): SCORES as means over trainings drawn with replacement, of people drawn with replacement."""
    rng = np.random.default_rng(1)
    weights = auroc.resampled(of, auroc.ROUNDS, rng)
    chosen = rng.multinomial(len(tables), np.full(len(tables), 1 / len(tables)), auroc.ROUNDS) / len(tables)
    return sum(_all(table, weights) * chosen[:, k] for k, table in enumerate(tables))


def _scores(values: np.ndarray, test: Labelled, names: list[str]) -> dict:
    of = kinds(test.labels, test.who)
    tables = [_tables(each, test.labels, test.who, len(of)) for each in values]
    one = np.ones((1, len(of)))
    points = np.mean([_all(table, one)[:, 0] for table in tables], axis=0)
    result: dict = {}
    for name, point, spread in zip(SCORES, points, _resampled(tables, of), strict=True):
        low, high = auroc.interval(spread)
        result |= {name: float(point), f"{name}_low": low, f"{name}_high": high}
    confusion = sum(table.confusion.sum(axis=0) for table in tables)
    result["labels"] = {
        name: {
            "auroc": float(np.mean([auroc.area(*table.curves[c], one)[0] for table in tables])),
            "recall": float(confusion[c, c] / confusion[c].sum()),
        }
        for c, name in enumerate(names)
    }
    return result


def _against(values: np.ndarray, rival: np.ndarray, test: Labelled) -> dict[str, float]:
    """Gains over the rival; the test swaps the two arms' predictions person by person.

    Both arms stand in one table as people 0 .. P - 1 and P .. 2 P - 1, so that a swap, too, is a choice of weights.
    """
    of = kinds(test.labels, test.who)
    who, labels = np.concatenate([test.who, test.who + len(of)]), np.tile(test.labels, 2)
    tables = []
    for ours, theirs in zip(values, rival, strict=True):
        # Swapped scores must be of one scale: ranks of ours stand beside ranks of theirs, the class chosen as it was.
        ranks = np.concatenate([rankdata(ours, axis=0), rankdata(theirs, axis=0)]) / len(ours)
        tables.append(_tables(np.concatenate([ours, theirs]), labels, who, 2 * len(of), ranks))

    def gain(weights: np.ndarray) -> np.ndarray:
        """(3, R) of weights (R, 2 P) of our arm; the rival has the halves exchanged."""
        other = np.roll(weights, len(of), axis=1)
        return np.mean([_all(table, weights) - _all(table, other) for table in tables], axis=0)

    rng = np.random.default_rng(2)
    swap = rng.integers(0, 2, (SWAPS, len(of))).astype(float)
    none = np.zeros((1, len(of)))
    observed = gain(np.concatenate([none + 1, none], axis=1))[:, 0]
    by_chance = np.abs(gain(np.concatenate([1 - swap, swap], axis=1)))
    # The same draws of people and trainings for both arms, which is what pairs them.
    ours, theirs = (
        _resampled([_tables(each, test.labels, test.who, len(of)) for each in arm], of) for arm in (values, rival)
    )
    result = {}
    for i, name in enumerate(SCORES):
        low, high = auroc.interval(ours[i] - theirs[i])
        as_large = (by_chance[i] >= abs(observed[i]) - 1e-12).sum()
        result |= {
            f"{name}_gain": float(observed[i]), f"{name}_gain_low": low, f"{name}_gain_high": high,
            f"{name}_p": float((1 + as_large) / (1 + SWAPS)),
        }  # fmt: skip
    return result


def _correct(tree: dict[str, dict[str, dict]], most: str) -> None:
    """Holm's p in place: over the arms with all people, synthetic slices alone among them, and over those with fewer.

    All smaller shares are one family, since help at any of them is told.
    """
    families: dict[bool, list[dict]] = {}
    for shares in tree.values():
        for share, scores in shares.items():
            if "auroc_p" in scores:
                families.setdefault(share in ("0", most), []).append(scores)
    for rows in families.values():
        for scores, corrected in zip(
            rows, multipletests([row["auroc_p"] for row in rows], method="holm")[1], strict=True
        ):
            scores["auroc_p_holm"] = float(corrected)


def effect(scores: dict) -> int:
    """1 where an arm surely gained over the rival, -1 where it surely lost, 0 otherwise: by Holm's p, which knows the
    trained classifiers alone, and by the interval, which holds the luck of training too."""
    if scores["auroc_p_holm"] >= 0.05:
        return 0
    return int(scores["auroc_gain_low"] > 0) - int(scores["auroc_gain_high"] < 0)
