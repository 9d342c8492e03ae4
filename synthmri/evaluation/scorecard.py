"""Every score of one set of images against one reference: what a row of the comparison holds."""

import sys
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from pydantic import Field

from synthmri import imageset
from synthmri.evaluation import copies, distances, pairs, uncertainty
from synthmri.evaluation.features import JUDGE
from synthmri.params import Section

# Extractor -> name of its Frechet distance; only Inception's may be called FID.
NAMES = {"effnet": "fd_effnet", "alexnet": "fd_alexnet", "inception": "fid", "further": "fd_further"}


SUBSAMPLED = 0.5  # share of the subjects in each subset that an uncertainty comes from


class Evaluate(Section):
    """Section `evaluate`."""

    batch_size: int = Field(ge=1)
    min_images: int = Field(ge=2)
    inception_weights: str
    features: str
    pairwise_features: int = Field(ge=100)
    pairwise_images: int = Field(ge=1)
    subsample_rounds: int = Field(ge=2)


@dataclass(frozen=True)
class Reference:
    """What all models are measured against. images: uint8 (., H, W); features: extractor -> float32 (., D).

    All may be memory-mapped: no score holds more of them in memory than a block.
    """

    train: np.ndarray
    test: np.ndarray
    train_features: dict[str, np.ndarray]
    test_features: dict[str, np.ndarray]
    subjects: pd.Series | None  # of the test images; None where not all are known, or are of one: `known`
    likeness: np.ndarray  # float64 (.,): of test images, of other people, to the train ones (`copies.likeness`)


def draw(rows: np.ndarray | int, most: int) -> np.ndarray:
    """`most` of the rows (a number: of 0 .. rows - 1) in ascending order, at random; all where there are no more.

    At random, as a set may be sorted by subject or by prompt; always the same ones, on which models are compared.
    """
    rows = np.arange(rows) if isinstance(rows, int) else rows
    if len(rows) <= most:
        return rows
    return rows[np.sort(np.random.default_rng(0).choice(len(rows), most, replace=False))]


def distribution(
    features: dict[str, np.ndarray], rows: np.ndarray, reference: Reference, p: Evaluate
) -> tuple[dict[str, float], pd.DataFrame]:
    """Distances between `rows` of a set and the test one, and `*_std`: their spread over test subjects.

    Frechet distances, by every extractor, take all rows; what compares every pair, by the judge alone, takes at most
    `pairwise_features` of each set, and precision to coverage no more test images than there are rows: of a set much
    smaller than the other nothing could be covered. The table has the rounds that the spreads come from, a column a
    score: of two sets they are of the same people (`uncertainty.rounds_by_subject`). It is empty where no spread is
    known.
    """
    made = {name: distances.gaussian(values, rows) for name, values in features.items()}
    ours = features[JUDGE][draw(rows, p.pairwise_features)]
    theirs = draw(len(reference.test), p.pairwise_features)
    as_many = draw(theirs, len(ours))

    def all_of(part: np.ndarray) -> dict[str, float]:  # of the rows of the test set
        some = reference.test_features[JUDGE][np.intersect1d(part, theirs)]
        fits = {name: distances.gaussian(reference.test_features[name], part) for name in made}
        result = {NAMES[name]: distances.frechet_distance(made[name], fits[name]) for name in made}
        result[f"kid_{JUDGE}"] = distances.kernel_distance(ours, some)
        few = reference.test_features[JUDGE][np.intersect1d(part, as_many)]
        return result | distances.precision_recall_density_coverage(few, ours)

    every = np.arange(len(reference.test))
    result = all_of(every)
    rounds = pd.DataFrame(columns=list(result))
    least = distances.NEIGHBOURS + 2
    if reference.subjects is not None and _enough(reference.subjects.iloc[as_many], least, "test", p):
        values = uncertainty.rounds_by_subject(
            lambda part: np.array(list(all_of(part).values())), every, reference.subjects,
            rounds=p.subsample_rounds, fraction=SUBSAMPLED, seed=0,
        )  # fmt: skip
        rounds = pd.DataFrame(values, columns=list(result))
        result |= {f"{name}_std": float(value) for name, value in rounds.std(ddof=1).items()}
        result["test_people"] = float(reference.subjects.nunique())
    return result, rounds


def known(manifest: pd.DataFrame) -> pd.Series | None:
    """The subject of each image; None where that of any is unknown, or all are of one: then no spread is known."""
    subjects = manifest.get("subject")
    return None if subjects is None or (subjects == "").any() or subjects.nunique() < 2 else subjects


def _enough(subjects: pd.Series, least: int, which: str, p: Evaluate) -> bool:
    """Whether every subset that an uncertainty comes from holds `least` images; says so where it does not."""
    found = uncertainty.fewest_kept(subjects, SUBSAMPLED)
    if found < least:
        print(
            f"no uncertainty (*_std): the subsets of {which} people may hold {found} images, and {least} are needed",
            file=sys.stderr,
        )
    return found >= least


def validation(
    features: np.ndarray, rows: np.ndarray, val: np.ndarray, subjects: pd.Series | None, p: Evaluate
) -> dict[str, float]:
    """`val_kid_effnet` of rows of the judge's features (N, D) against those of the validation slices (M, D).

    Models are chosen by it. And `val_kid_effnet_std`, its standard error over validation subjects, where two or more
    are known.
    """
    ours = features[draw(rows, p.pairwise_features)]
    theirs = draw(len(val), p.pairwise_features)
    name = f"val_kid_{JUDGE}"
    result = {name: distances.kernel_distance(ours, val[theirs])}
    if subjects is not None and _enough(subjects.iloc[theirs], 2, "validation", p):
        spread = uncertainty.by_subject(
            lambda part: distances.kernel_distance(ours, part), val[theirs], subjects.iloc[theirs],
            rounds=p.subsample_rounds, fraction=SUBSAMPLED, seed=0,
        )  # fmt: skip
        result[f"{name}_std"] = float(spread)
    return result


class Pairs(NamedTuple):
    """Of the images compared with the train set: rows (which they are), likeness and closest as `copies.Likeness`."""

    rows: np.ndarray
    likeness: np.ndarray
    closest: np.ndarray


def against_train(
    images: np.ndarray, rows: np.ndarray, reference: Reference, p: Evaluate, lpips
) -> tuple[dict[str, float], Pairs]:
    """What tells of resemblance and copying, image by image, for `rows` of uint8 (N, H, W).

    At most `pairwise_images` of them, drawn at random, are compared with every train image and its mirror image.
    Returns the numbers by name, and the pairs that resemble most.
    """
    some = draw(rows, p.pairwise_images)
    compared = imageset.rows(images, some)
    closest = copies.closest_by_pixels(compared, reference.train)
    like = copies.likeness(compared, reference.train)
    nearest = copies.views(reference.train, closest.nearest)
    result = pairs.resemblance(compared, nearest, lpips, batch=p.batch_size)
    result["memorised"] = copies.memorised(like.largest, reference.likeness)
    result["largest_correlation"] = float(closest.correlation.max())
    diversity = pairs.ms_ssim(compared, seed=0)
    if diversity is not None:
        result["ms_ssim"] = diversity
    return result | {"n": float(len(rows))}, Pairs(some, like.largest, like.closest)


class Score(NamedTuple):
    """Of a set. numbers: by name, docs/evaluation.md says what each means; rounds: of `distribution`; pairs."""

    numbers: dict[str, float]
    rounds: pd.DataFrame
    pairs: Pairs


def score(
    images: np.ndarray, features: dict[str, np.ndarray], rows: np.ndarray, reference: Reference, p: Evaluate, lpips
) -> Score:
    """All numbers of `rows` of a set, of images and of features by extractor."""
    numbers, rounds = distribution(features, rows, reference, p)
    resembling, found = against_train(images, rows, reference, p, lpips)
    return Score(numbers | resembling, rounds, found)
