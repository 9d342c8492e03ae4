"""Which drawn slices are no heads: of odd size, lopsided, too bright, flat, smooth, or far from every real slice.

Each measure is judged by its own distribution over validation slices, which are real and of people that training did
not see, so that nothing is said about what a head must be.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial.distance import cdist

HEAD = 25  # grey levels: what is brighter is head
SOFT_PX = 2.0  # standard deviation of the blur before; noise of the background is none
REAL = 99  # percentile of validation slices' implausibility that is still held for plausible
MARGIN = 1.2  # above it: of few people the tails are known badly
MEASURES = ("size", "asymmetry", "brightness", "contrast", "detail", "distance")


class Real(NamedTuple):
    """What is known of real slices: features (M, D) of training ones; middle of each measure, and how far REAL percent
    lie from it at most, its width, (6,); bound.
    """

    features: np.ndarray
    middle: np.ndarray
    width: np.ndarray
    bound: float


def real(val: np.ndarray, val_features: np.ndarray, train_features: np.ndarray) -> Real:
    """From validation slices uint8 (V, H, W), their features (V, D), and those of the training slices (M, D)."""
    values = _measures(val, val_features, train_features)
    middle = np.median(values, axis=0)
    width = np.maximum(np.percentile(_off(values - middle), REAL, axis=0), 1e-6)
    scores = _off((values - middle) / width).max(axis=1)
    return Real(train_features, middle, width, MARGIN * float(np.percentile(scores, REAL)))


def implausibility(images: np.ndarray, features: np.ndarray, known: Real) -> np.ndarray:
    """How many widths each of uint8 (N, H, W) with features (N, D) lies off in its worst measure: float64 (N,).

    Above `known.bound` it is held for implausible.
    """
    return _off((_measures(images, features, known.features) - known.middle) / known.width).max(axis=1)


def _off(differences: np.ndarray) -> np.ndarray:
    """On both sides, but for what a slice cannot have too little of here."""
    return np.where(np.isin(MEASURES, ("asymmetry", "distance")), differences, np.abs(differences))


def _measures(images: np.ndarray, features: np.ndarray, train_features: np.ndarray) -> np.ndarray:
    """(N, 6): share of the picture that is head; how unlike its mirror image; mean and deviation of grey levels in the
    head, and logarithm of that from the blurred picture there; distance of features to the nearest training slice.
    """
    out = []
    for image in images:
        soft = ndimage.gaussian_filter(image.astype(np.float32), SOFT_PX)
        head = soft > HEAD
        inside = image[head].astype(float) if head.any() else np.zeros(1)
        detail = (image - soft)[head].std() if head.any() else 0.0
        middle = ndimage.center_of_mass(head)[1] if head.any() else 0.0
        moved = ndimage.shift(soft, (0, (image.shape[1] - 1) / 2 - middle), order=1)
        even = np.corrcoef(moved.ravel(), moved[:, ::-1].ravel())[0, 1] if moved.std() > 0 else 0.0
        out.append((head.mean(), 1 - even, inside.mean(), inside.std(), np.log(1 + detail)))
    return np.column_stack([np.array(out), cdist(features, train_features).min(axis=1)])
