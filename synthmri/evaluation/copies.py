"""Whether images are copies of training images: nearest neighbours by features, by pixels and by correlation."""

from typing import NamedTuple

import numpy as np
import torch

from synthmri.errors import UserError
from synthmri.evaluation.distances import BLOCK, check_shape, distance_blocks, finite
from synthmri.evaluation.pairs import check_images
from synthmri.imageset import pieces

# Pixels at a time. Grey levels less 128 multiply to at most 2^14, and 2^10 of these add up to 2^24, below which float32
# holds every whole number: such products are exact, in half the time and memory of float64.
EXACT = 1024


def nearest_distances(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Euclidean distance of each row (N, D) to the nearest row of (M, D): float64 (N,).

    references may be memory-mapped: a block of them is in memory at a time. Raises UserError for other shapes or values
    that are not finite.
    """
    check_shape(features, references)
    features = finite(features)
    nearest = np.full(len(features), np.inf)
    for start, piece in pieces(references, BLOCK):
        values = finite(piece, start)
        for first, rows, distance in distance_blocks(features, values):
            # Rounding of the quick formula leaves equals apart, so of the nearest it is worked out again.
            closest = values[distance.argmin(axis=1)]
            exact = np.sqrt(np.square(features[rows] - closest).sum(axis=1))
            nearest[first : first + len(exact)] = np.minimum(nearest[rows], exact)
    return nearest


def memorised(features: np.ndarray, held_out: np.ndarray, train: np.ndarray) -> float:
    """Share of images nearer to a train image than the 5th percentile of held-out images is.

    0.05 is what images of other people give; more tells of copies (Akbar 2023, arXiv 2305.07644; Dar 2024, arXiv
    2402.01054, found them in diffusion models of small sets). All (., D), of one extractor.
    """
    bound = np.percentile(nearest_distances(held_out, train), 5)
    return float((nearest_distances(features, train) < bound).mean())


class Closest(NamedTuple):
    """Of each image. nearest: int64 (N,), the reference at the smallest Euclidean distance of pixels. correlation:
    float64 (N,), the largest Pearson correlation of its pixels with a reference. correlated: int64 (N,), which that is.
    """

    nearest: np.ndarray
    correlation: np.ndarray
    correlated: np.ndarray


def closest_by_pixels(images: np.ndarray, references: np.ndarray, *, block: int = 256) -> Closest:
    """The reference that each image is closest to, by distance and by correlation; of equally close ones the first.

    images: uint8 (N, H, W), references: uint8 (M, H, W), which may be memory-mapped: `block` of them are in memory at a
    time, and they are read once. Distances are exact. An image of one grey level correlates with nothing: 0.
    Raises UserError for other types or sizes, or no references.
    """
    check_images(images, references)
    if len(references) == 0:
        raise UserError("no references to find the closest of; give at least one image")
    ours = _signed(images)
    least, nearest = np.full(len(images), np.inf), np.zeros(len(images), np.int64)
    most, correlated = np.full(len(images), -np.inf), np.zeros(len(images), np.int64)
    pixels, each = ours.shape[1], np.arange(len(ours))
    our_sum, our_square = _sums(ours)
    our_spread = _spread(our_sum, our_square, pixels)
    for start, piece in pieces(references, block):
        theirs = _signed(piece)
        product = np.zeros((len(ours), len(theirs)))
        for a, b in zip(ours.split(EXACT, dim=1), theirs.split(EXACT, dim=1), strict=True):
            product += (a @ b.T).numpy()
        total, square = _sums(theirs)

        distance = square - 2 * product  # |a - b|^2 without |a|^2, which is the same for every b
        found = distance.argmin(axis=1)
        nearest = np.where(distance[each, found] < least, start + found, nearest)
        least = np.minimum(least, distance[each, found])

        product -= np.outer(our_sum, total / pixels)
        product /= np.outer(our_spread, _spread(total, square, pixels))
        found = product.argmax(axis=1)
        correlated = np.where(product[each, found] > most, start + found, correlated)
        most = np.maximum(most, product[each, found])
    return Closest(nearest, np.clip(most, -1, 1), correlated)  # rounding may exceed 1


def _signed(images: np.ndarray) -> torch.Tensor:
    """float32 (N, H * W), whole numbers of -128 to 127."""
    return torch.from_numpy(np.array(images)).flatten(1).float().sub_(128)


def _sums(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Sum, and sum of squares, of each of the rows of `_signed`: float64 (N,), exact."""
    total, square = (torch.zeros(len(rows), dtype=torch.float64) for _ in range(2))
    for part in rows.split(EXACT, dim=1):
        total += part.sum(1)
        square += part.square().sum(1)
    return total.numpy(), square.numpy()


def _spread(total: np.ndarray, square: np.ndarray, pixels: int) -> np.ndarray:
    """Root of the sum of squares about the mean; infinite for rows of one value, which have no correlation."""
    about = square - total**2 / pixels
    return np.where(about > 0, np.sqrt(np.maximum(about, 0)), np.inf)
