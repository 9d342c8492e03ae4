"""What is drawn and may not leave the house is drawn again: slices too like a training slice, and heads that are none.

It protects the images that are released, and nothing else: whoever has the weights draws without it.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from synthmri.evaluation import copies, features, plausibility
from synthmri.evaluation.features import JUDGE

HONEST = 95  # percentile of validation slices' likeness to training ones: as for `memorised`
AGAIN = 2**32  # from a seed to the one that is drawn in its place
ATTEMPTS = 8  # of each image


class Known(NamedTuple):
    """train: uint8 (M, H, W); most_alike: largest likeness that passes; real: of `plausibility`."""

    train: np.ndarray
    most_alike: float
    real: plausibility.Real


class Shielded(NamedTuple):
    """images: uint8 (N', H, W), N' <= N; asked: int64 (N',), which of the N each is; seeds: that it was drawn from;
    likeness: to the nearest training slice; and counts, over everything drawn: drawn, alike, implausible.
    """

    images: np.ndarray
    asked: np.ndarray
    seeds: np.ndarray
    likeness: np.ndarray
    drawn: int
    alike: int
    implausible: int


def known(train: np.ndarray, val: np.ndarray, train_features: np.ndarray, val_features: np.ndarray) -> Known:
    """From training and validation slices, uint8 (., H, W), and the judge's features of them, (., D)."""
    most_alike = float(np.percentile(copies.likeness(val, train).largest, HONEST))
    return Known(train, most_alike, plausibility.real(val, val_features, train_features))


class Verdict(NamedTuple):
    """Of each image. likeness: float64 (N,), to the nearest training slice; alike, implausible: bool (N,), why it may
    not pass.
    """

    likeness: np.ndarray
    alike: np.ndarray
    implausible: np.ndarray


def judge(images: np.ndarray, known: Known, values: np.ndarray | None = None) -> Verdict:
    """What is to be said of uint8 (N, H, W). values: the judge's features of them, (N, D), where they are there."""
    likeness = copies.likeness(images, known.train).largest
    values = features.extract(JUDGE, images) if values is None else values
    off = plausibility.implausibility(images, values, known.real)
    return Verdict(likeness, likeness > known.most_alike, off > known.real.bound)


def draw(sample: Callable[[list[int], list[int]], np.ndarray], seeds: list[int], known: Known) -> Shielded:
    """For each seed the first image of seed, seed + AGAIN, seed + 2 AGAIN, ... that passes; after ATTEMPTS, none.

    sample(which, seeds): uint8 (k, H, W), of the images of these numbers in `seeds`, from these seeds.
    """
    pending, passed = list(range(len(seeds))), []
    drawn = alike = implausible = 0
    for attempt in range(ATTEMPTS):
        if not pending:
            break
        now = [seeds[i] + attempt * AGAIN for i in pending]
        images = sample(pending, now)
        likeness, near, odd = judge(images, known)
        drawn, alike, implausible = drawn + len(images), alike + int(near.sum()), implausible + int(odd.sum())
        passed += [(i, now[k], images[k], likeness[k]) for k, i in enumerate(pending) if not near[k] and not odd[k]]
        pending = [i for k, i in enumerate(pending) if near[k] or odd[k]]
    passed.sort(key=lambda row: row[0])
    asked, of, images, likeness = ([row[k] for row in passed] for k in range(4))
    shape = known.train.shape[1:]
    return Shielded(
        np.stack(images) if images else np.zeros((0, *shape), np.uint8), np.array(asked, np.int64),
        np.array(of, np.int64), np.array(likeness), drawn, alike, implausible,
    )  # fmt: skip
