"""How much a score depends on the people it was measured against."""

import math
from collections.abc import Callable

import numpy as np
from scipy.stats import t as student_t

from synthmri.errors import UserError

SURE = 0.95  # how sure a lead must be


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
    """Standard error of `score` over the choice of reference subjects: the spread of `rounds_by_subject`.

    It does not hold the luck of the sampling seeds.
    """
    return np.std(rounds_by_subject(score, features, subjects, rounds=rounds, fraction=fraction, seed=seed), 0, ddof=1)


def rounds_by_subject(
    score: Callable[[np.ndarray], float | np.ndarray],
    features: np.ndarray,
    subjects: np.ndarray,
    *,
    rounds: int,
    fraction: float,
    seed: int,
) -> np.ndarray:
    """`score` of subsets of the reference subjects: the delete-d jackknife of Shao and Wu 1989.

    Slices of one subject are alike, so whole subjects are left out, and never drawn twice: duplicates shrink the spread
    of a set and inflate the Frechet distance. Each round keeps r of the S subjects. Sets that overlap that much vary
    less than independent ones of S subjects would; the factor r / (S - r) on the variance makes up for it exactly for
    a mean, and asymptotically for smooth scores. The draws depend on subjects and seed alone, so that round i of two
    models is of the same people, and their difference is of what these have in common.

    score: features (n, D) -> number, or an array of several; features: (N, D); subjects: (N,) labels; rounds: draws;
    fraction: share of subjects that is kept, in (0, 1); seed: of the draws.
    Returns float64 (rounds, ...) in units of the score, about its mean and scaled by that factor, so that its standard
    deviation is the standard error. Raises UserError below two subjects.
    """
    subjects = np.asarray(subjects)
    names = np.unique(subjects)
    if len(names) < 2:
        raise UserError(f"{len(names)} subject(s) in the reference; an uncertainty over subjects needs at least 2")
    kept = kept_subjects(len(names), fraction)
    rng = np.random.default_rng(seed)
    draws = [np.isin(subjects, rng.choice(names, kept, replace=False)) for _ in range(rounds)]
    values = np.array([score(features[rows]) for rows in draws], np.float64)
    return (values - values.mean(axis=0)) * math.sqrt(kept / (len(names) - kept))


def leader(scores: dict[str, float], rounds: dict[str, np.ndarray], people: int) -> str | None:
    """The one whose score is surely larger than that of every other; None where none is.

    Surely: one-sided, SURE, Student's t of the difference to each other. As the best must lead all others, there is no
    correction for how many they are (Berger 1982, intersection-union). The errors come from few people and few rounds:
    the degrees of freedom are those of the fewer.
    rounds: of each, (R,) of `rounds_by_subject` with the same draws; people: subjects drawn from.
    """
    first, *others = sorted(scores, key=lambda name: -scores[name])

    def ahead(other: str) -> bool:
        error = np.std(rounds[first] - rounds[other], ddof=1)
        bound = student_t.ppf(SURE, min(people, len(rounds[first])) - 1)
        return scores[first] - scores[other] > bound * error

    return first if others and all(ahead(other) for other in others) else None
