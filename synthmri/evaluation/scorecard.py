"""Every score of one set of images against one reference: what a row of the comparison holds."""

import sys
from dataclasses import dataclass

import numpy as np
import pandas as pd
from pydantic import Field

from synthmri import imageset
from synthmri.evaluation import copies, distances, pairs, uncertainty
from synthmri.params import Section

NAMES = {"alexnet": "fd_alexnet", "effnet": "fd_effnet", "inception": "fid"}  # only Inception may be called FID


class Evaluate(Section):
    """Section `evaluate`."""

    batch_size: int = Field(ge=1)
    min_images: int = Field(ge=2)
    inception_weights: str
    pairwise_features: int = Field(ge=100)
    pairwise_images: int = Field(ge=1)
    subsample_rounds: int = Field(ge=2)
    subsample_fraction: float = Field(gt=0, lt=1)
    seed: int = Field(ge=0)


@dataclass(frozen=True)
class Reference:
    """What all models are measured against. images: uint8 (., H, W); features: extractor -> float32 (., D).

    All may be memory-mapped: no score holds more of them in memory than a block.
    """

    train: np.ndarray
    test: np.ndarray
    train_features: dict[str, np.ndarray]
    test_features: dict[str, np.ndarray]
    subjects: pd.Series | None  # of the held-out images; None where not all are known, or are of one: `known`


def draw(rows: np.ndarray | int, most: int, seed: int) -> np.ndarray:
    """`most` of the rows (a number: of 0 .. rows - 1) in ascending order, at random; all where there are no more.

    At random, as a set may be sorted by subject or by prompt.
    """
    rows = np.arange(rows) if isinstance(rows, int) else rows
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(seed).choice(len(rows), most, replace=False))]


def distribution(
    features: dict[str, np.ndarray], rows: np.ndarray, reference: Reference, p: Evaluate
) -> dict[str, float]:
    """Distances between `rows` of a set and the held-out one, and `*_std`: their spread over held-out subjects.

    Frechet distances take all rows, what compares every pair at most `pairwise_features` of each set.
    """
    made = {name: distances.gaussian(values, rows) for name, values in features.items()}
    ours = features["alexnet"][draw(rows, p.pairwise_features, p.seed)]
    theirs = draw(len(reference.test), p.pairwise_features, p.seed)

    def all_of(part: np.ndarray) -> dict[str, float]:  # of the rows of the held-out set

        def frechet(name: str) -> float:
            return distances.frechet_distance(made[name], distances.gaussian(reference.test_features[name], part))

        some = reference.test_features["alexnet"][np.intersect1d(part, theirs)]
        result = {"fd_alexnet": frechet("alexnet"), "kid_alexnet": distances.kernel_distance(ours, some)}
        result |= distances.precision_recall_density_coverage(some, ours)
        return result | {NAMES[name]: frechet(name) for name in features if name != "alexnet"}

    every = np.arange(len(reference.test))
    result = all_of(every)
    least = distances.NEIGHBOURS + 2
    if reference.subjects is not None and _enough(reference.subjects.iloc[theirs], least, "held-out", p):
        spread = uncertainty.by_subject(
            lambda part: np.array(list(all_of(part).values())), every, reference.subjects,
            rounds=p.subsample_rounds, fraction=p.subsample_fraction, seed=p.seed,
        )  # fmt: skip
        result |= {f"{name}_std": float(value) for name, value in zip(list(result), spread, strict=True)}
    return result


def known(manifest: pd.DataFrame) -> pd.Series | None:
    """The subject of each image; None where that of any is unknown, or all are of one: then no spread is known."""
    subjects = manifest.get("subject")
    return None if subjects is None or (subjects == "").any() or subjects.nunique() < 2 else subjects


def _enough(subjects: pd.Series, least: int, which: str, p: Evaluate) -> bool:
    """Whether every subset that an uncertainty comes from holds `least` images; says so where it does not."""
    found = uncertainty.fewest_kept(subjects, p.subsample_fraction)
    if found < least:
        print(
            f"no uncertainty (*_std): the subsets of {which} people may hold {found} images, and {least} are needed",
            file=sys.stderr,
        )
    return found >= least


def validation(
    features: np.ndarray, rows: np.ndarray, held_back: np.ndarray, subjects: pd.Series | None, p: Evaluate
) -> dict[str, float]:
    """`val_kid_alexnet` of rows of features (N, D) against those of the validation slices (M, D), to choose models by.

    And `val_kid_alexnet_std`, its standard error over validation subjects, where two or more are known.
    """
    ours = features[draw(rows, p.pairwise_features, p.seed)]
    theirs = draw(len(held_back), p.pairwise_features, p.seed)
    result = {"val_kid_alexnet": distances.kernel_distance(ours, held_back[theirs])}
    if subjects is not None and _enough(subjects.iloc[theirs], 2, "validation", p):
        spread = uncertainty.by_subject(
            lambda part: distances.kernel_distance(ours, part), held_back[theirs], subjects.iloc[theirs],
            rounds=p.subsample_rounds, fraction=p.subsample_fraction, seed=p.seed,
        )  # fmt: skip
        result["val_kid_alexnet_std"] = float(spread)
    return result


def against_train(
    images: np.ndarray, features: dict[str, np.ndarray], rows: np.ndarray, reference: Reference, p: Evaluate,
    lpips,
) -> tuple[dict[str, float], np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """What tells of resemblance and copying, image by image, for `rows` of uint8 (N, H, W) and of its features.

    At most `pairwise_images` of them, drawn at random, are compared with every train image by their pixels, and
    `pairwise_features` by their features. Returns the numbers by name, and of the images compared by pixels: which rows
    they are, the largest correlation with a train image, and which that is.
    """
    some = draw(rows, p.pairwise_images, p.seed)
    compared = imageset.rows(images, some)
    closest = copies.closest_by_pixels(compared, reference.train)
    nearest = imageset.rows(reference.train, closest.nearest)
    result = pairs.resemblance(compared, nearest, lpips, batch=p.batch_size)
    result["memorised"] = copies.memorised(
        features["alexnet"][draw(rows, p.pairwise_features, p.seed)],
        reference.test_features["alexnet"][draw(len(reference.test), p.pairwise_features, p.seed)],
        reference.train_features["alexnet"],
    )
    result["largest_correlation"] = float(closest.correlation.max())
    diversity = pairs.ms_ssim(compared, seed=p.seed)
    if diversity is not None:
        result["ms_ssim"] = diversity
    return result | {"n": float(len(rows))}, some, closest.correlation, closest.correlated


def score(
    images: np.ndarray, features: dict[str, np.ndarray], rows: np.ndarray, reference: Reference, p: Evaluate,
    lpips,
) -> tuple[dict[str, float], np.ndarray, np.ndarray, np.ndarray]:  # fmt: skip
    """All numbers of `rows` of a set by name; docs/evaluation.md says what each means. Otherwise as `against_train`."""
    result, *closest = against_train(images, features, rows, reference, p, lpips)
    return distribution(features, rows, reference, p) | result, *closest
