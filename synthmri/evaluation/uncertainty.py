"""How much a score depends on the people it was measured against."""

import math
from collections.abc import Callable

import numpy as np

from synthmri.errors import UserError


def kept_subjects(count: int, fraction: float) -> int:
    """How many of `count` subjects, two or more, each round of `by_subject` keeps."""
    return min(max(1, round(fraction * count)), count - 1)


def fewest_kept(subjects: np.ndarray, fraction: float) -> int:
    """The fewest rows that a round of `by_subject` may keep of these labels (N,); 0 below two subjects."""
    sizes = np.sort(np.unique(np.asarray(subjects), return_counts=True)[1])
    return int(sizes[: kept_subjects(len(sizes), fraction)].sum()) if len(sizes) > 1 else 0


def by_subject(
    score: Callable[[np.ndarray], float | np.ndarray],
    features: np.ndarray,
    subjects: np.ndarray,
    *,
    rounds: int,
    fraction: float,
    seed: int,
) -> np.ndarray:
    """Standard error of `score` over the choice of reference subjects: the delete-d jackknife of Shao and Wu 1989.

    Slices of one subject are alike, so whole subjects are left out, and never drawn twice: duplicates shrink the spread
    of a set and inflate the Frechet distance. Each round keeps r of the S subjects. Sets that overlap that much vary
    less than independent ones of S subjects would; the factor r / (S - r) on the variance makes up for it exactly for
    a mean, and asymptotically for smooth scores.

    score: features (n, D) -> number, or an array of several; features: (N, D); subjects: (N,) labels; rounds: draws;
    fraction: share of subjects that is kept, in (0, 1); seed: of the draws.
    Returns the standard error in units of the score. It does not hold the luck of the sampling seeds.
    Raises UserError below two subjects.
    """
    subjects = np.asarray(subjects)
    names = np.unique(subjects)
    if len(names) < 2:
        raise UserError(f"{len(names)} subject(s) in the reference; an uncertainty over subjects needs at least 2")
    kept = kept_subjects(len(names), fraction)
    rng = np.random.default_rng(seed)
    draws = [np.isin(subjects, rng.choice(names, kept, replace=False)) for _ in range(rounds)]
    values = [score(features[rows]) for rows in draws]
    return np.std(values, axis=0, ddof=1) * math.sqrt(kept / (len(names) - kept))
