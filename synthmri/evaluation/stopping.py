"""When fine-tuning is to stop, and which of its snapshots is kept: the nearest to validation people that copies nobody.

Distance and copying are of few images, drawn from the same seeds at every snapshot, so that they compare.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from synthmri.evaluation import copies, distances
from synthmri.imageset import evenly

LOOKED_AT = 100
HONEST, SURE = 0.05, 0.95  # `memorised` of other people's slices; how sure it is that more than this are copies


class Snapshot(NamedTuple):
    """kid: kernel distance to the validation slices; recall, coverage: of these; memorised: share of likely copies."""

    kid: float
    recall: float
    coverage: float
    memorised: float


def snapshot(
    images: np.ndarray, features: np.ndarray, train: np.ndarray, val_features: np.ndarray, honest: np.ndarray
) -> Snapshot:
    """What uint8 (N, H, W) with features (N, D) are, against training slices (M, H, W) and validation features (V, D).

    honest: as `honest` gives it. Where there are too few images
    for recall and coverage these are 0.
    """
    few = min(len(features), len(val_features)) < distances.NEIGHBOURS + 2
    near = {} if few else distances.precision_recall_density_coverage(val_features, features)
    return Snapshot(
        kid=distances.kernel_distance(features, val_features),
        recall=near.get("recall", 0.0),
        coverage=near.get("coverage", 0.0),
        memorised=copies.memorised(copies.likeness(images, train).largest, honest),
    )


def honest(val: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Likeness to training slices (M, H, W) of at most LOOKED_AT of the validation ones (V, H, W), at even steps."""
    return copies.likeness(np.asarray(val[evenly(len(val), LOOKED_AT)]), train).largest


def kept(found: Sequence[Snapshot], count: int) -> int:
    """Which of the snapshots, of `count` images each, is kept; the first is of the model before all fine-tuning.

    The one of the least distance among those that copy no more than honest images would, allowing for chance: their
    number of likely copies is not above the SURE quantile of a binomial of HONEST. Where all are above it, the one that
    copies least. The first is kept only where no other is admitted: it has not seen these slices, so that what little
    a distance of few images says for it is chance, and it is scored as a model of its own.
    """
    most = stats.binom.ppf(SURE, count, HONEST) / count
    admitted = [i for i, each in enumerate(found) if each.memorised <= most + 1e-9]
    if admitted:
        return min(admitted, key=lambda i: (i == 0, found[i].kid))
    return min(range(len(found)), key=lambda i: (found[i].memorised, found[i].kid))


def over(found: Sequence[Snapshot], count: int, patience: int) -> bool:
    """Whether `patience` snapshots have passed since the one that is kept; never for 0."""
    return 0 < patience <= len(found) - 1 - kept(found, count)
