"""Which settings of the sampler are best: a grid of them, judged on validation slices and never on the test slices."""

import itertools
import math
from typing import Annotated

import numpy as np
from pydantic import Field
from scipy.stats import t as student_t

from synthmri.evaluation import distances, uncertainty
from synthmri.params import Section
from synthmri.training import sampling

ROUNDS = 60  # subsets that an uncertainty comes from
LEAST_PEOPLE = 3  # of fewer, no half tells how much people differ
FALSE_ALARM = 0.05  # chance that any of the others is taken although none is better


class Sweep(Section):
    """Section `sweep`."""

    guidance_scale: tuple[Annotated[float, Field(ge=1, le=50)], ...]
    steps: tuple[Annotated[int, Field(ge=1, le=1000)], ...]
    scheduler: tuple[sampling.Scheduler, ...]


def grid(p: Sweep, own: sampling.Sample, *, guided: bool) -> list[sampling.Sample]:
    """What section `sample` says, then every other combination of the lists; an empty list stands for `own`'s value.

    guided: whether guidance changes anything (`sampling.guidance`); where it does not, `own`'s is the only one.
    """
    axes = (p.guidance_scale if guided else (), p.steps, p.scheduler)
    names = ("guidance_scale", "steps", "scheduler")
    values = [axis or (getattr(own, name),) for name, axis in zip(names, axes, strict=True)]
    every = [own.model_copy(update=dict(zip(names, some, strict=True))) for some in itertools.product(*values)]
    return list(dict.fromkeys([own, *every]))


def gains(
    drawn: list[np.ndarray], val: np.ndarray, subjects: np.ndarray, *, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """By how much the KID of each set lies below that of the first, and the standard error of it; the first's are 0.

    drawn: sets of features (n, D), row i of each of the same seed; val: (M, D); subjects: of its rows, at
    least LEAST_PEOPLE. The error holds the choice of subjects and of seeds: `uncertainty.by_subject`, over each
    in turn.
    """

    def below_first(rows: np.ndarray, val: np.ndarray) -> np.ndarray:
        kid = np.array([distances.kernel_distance(features[rows], val) for features in drawn])
        return kid[0] - kid

    settings = dict(rounds=ROUNDS, fraction=0.5, seed=seed)
    every = np.arange(len(drawn[0]))
    of_seeds = uncertainty.by_subject(lambda rows: below_first(rows, val), every, every, **settings)
    of_people = uncertainty.by_subject(lambda part: below_first(every, part), val, subjects, **settings)
    return below_first(every, val), np.hypot(of_seeds, of_people)


def choose(gain: np.ndarray, spread: np.ndarray, people: int) -> int:
    """The one of the largest gain among those that are surely above 0; else the first, what section `sample` says.

    Surely: by so many standard errors that the best of as many equals would pass with probability FALSE_ALARM at most
    (Bonferroni; Student's t, as the errors are estimated from so few `people`). So a small sweep keeps what it cannot
    tell apart, and its noise chooses nothing.
    """
    if len(gain) == 1:
        return 0
    bound = student_t.ppf(1 - FALSE_ALARM / (len(gain) - 1), people - 1)
    sure = np.where(gain > bound * spread, gain, -math.inf)
    sure[0] = 0.0
    return int(np.argmax(sure))
