"""Distances between sets of features (N, D): Frechet, kernel (KID), and precision, recall, density, coverage.

Pure functions; what each number may be called stands in docs/evaluation.md.
"""

import math
from typing import NamedTuple

import numpy as np

from synthmri.errors import UserError
from synthmri.imageset import pieces

BLOCK = 2048  # rows of features at a time: 20 MiB of the longest ones


class Gaussian(NamedTuple):
    """count: N. mean: float64 (D,). root: float64 (at most D, D), root' root = sum of squares about the mean."""

    count: int
    mean: np.ndarray
    root: np.ndarray


def gaussian(features: np.ndarray, rows: np.ndarray | None = None, *, block: int = BLOCK) -> Gaussian:
    """The Gaussian fitted to features (N, D), or to some `rows` of them, of which one block is in memory at a time.

    Raises UserError for another shape, fewer than two rows, or values that are not finite.
    """
    check_shape(features, features)
    count = len(features) if rows is None else len(rows)
    if count < 2:
        raise UserError(f"{count} row(s) of features make no Gaussian; give at least 2")
    fitted = None
    for start, piece in pieces(features, block, rows):
        values = finite(piece, start)
        mean = values.mean(axis=0)
        part = Gaussian(len(values), mean, np.linalg.qr(values - mean, mode="r"))
        fitted = part if fitted is None else merged(fitted, part)
    return fitted


def merged(a: Gaussian, b: Gaussian) -> Gaussian:
    """What `gaussian` gives for the rows of both: the pairwise update of Chan, Golub and LeVeque 1983, eq. 2.1.

    Sums of squares about the means add up to Sa + Sb + n m / (n + m) d d' with d the difference of the means. Kept as
    triangular roots, whose QR has the same square, they lose no digits to squaring: as if all rows had been there.
    """
    count = a.count + b.count
    apart = b.mean - a.mean
    between = math.sqrt(a.count * b.count / count) * apart
    root = np.linalg.qr(np.concatenate([a.root, b.root, between[None]]), mode="r")
    return Gaussian(count, a.mean + apart * (b.count / count), root)


def frechet_distance(x: np.ndarray | Gaussian, y: np.ndarray | Gaussian) -> float:
    """Squared Frechet distance of the Gaussians fitted to two sets of features.

    |mx - my|^2 + tr(Sx + Sy - 2 (Sx Sy)^(1/2)): Dowson and Landau 1982; Heusel 2017 (arXiv 1706.08500), eq. 6.

    With Sx = Rx' Rx the eigenvalues of Sx Sy are the squared singular values of Rx Ry', so the trace of the root is the
    nuclear norm of that matrix. With triangular Rx and Ry of at most D rows this one route is exact and fast both below
    and above N = D, needs no full rank, and cannot turn complex as a matrix square root does.

    x: (N, D), y: (M, D), any float, read as float64 block by block; or what `gaussian` gives for them. Returns >= 0, in
    squared units of the features; biased upwards for small N and M, so compare only at equal ones.
    Raises UserError for other shapes, fewer than two rows, or values that are not finite.
    """
    if not isinstance(x, Gaussian) and not isinstance(y, Gaussian):
        check_shape(x, y)
    x, y = (each if isinstance(each, Gaussian) else gaussian(each) for each in (x, y))
    root_x, root_y = (each.root / math.sqrt(each.count - 1) for each in (x, y))
    trace_of_root = np.linalg.svd(root_x @ root_y.T, compute_uv=False).sum()
    means = np.square(x.mean - y.mean).sum()
    traces = np.square(root_x).sum() + np.square(root_y).sum()
    return max(0.0, float(means + traces - 2 * trace_of_root))  # equal sets leave a rounding error of either sign


def kernel_distance(x: np.ndarray, y: np.ndarray, *, block: int = BLOCK) -> float:
    """Unbiased squared maximum mean discrepancy with the cubic kernel (a.b / D + 1)^3, KID's for these features.

    Estimator: Gretton 2012 (JMLR 13), eq. 3; kernel: Binkowski 2018 (arXiv 1801.01401), section 4. All rows are used at
    once, which has less variance than the mean over blocks of 1000 by which large sets are made affordable.

    x: (N, D), y: (M, D), any float, read as float64; of the kernel `block` x `block` are in memory at a time. Returns a
    number about zero for equal distributions, whatever N and M are; it may be negative.
    Raises UserError for other shapes, fewer than two rows, or values that are not finite.
    """
    x, y = _features(x, y)

    def kernels(a, b):
        for i in range(0, len(a), block):
            for j in range(0, len(b), block):
                k = a[i : i + block] @ b[j : j + block].T / a.shape[1] + 1
                yield i == j, k * k * k

    def mean_without_diagonal(a):
        total = sum(k.sum() - (np.trace(k) if diagonal else 0) for diagonal, k in kernels(a, a))
        return total / (len(a) * (len(a) - 1))

    within = mean_without_diagonal(x) + mean_without_diagonal(y)
    return float(within - 2 * sum(k.sum() for _, k in kernels(x, y)) / (len(x) * len(y)))


NEIGHBOURS = 5  # as in Naeem 2020


def precision_recall_density_coverage(
    reference: np.ndarray, features: np.ndarray, *, k: int = NEIGHBOURS
) -> dict[str, float]:
    """`precision`, `recall` (Kynkaanniemi 2019, arXiv 1904.06991), `density`, `coverage` (Naeem 2020, 2002.09797).

    reference: (M, D), features: (N, D), both more than k + 1 rows; k nearest neighbours make the manifolds. As the
    package `prdc` of Naeem 2020 has them, with a block of the distances in memory and not all. All but density, which
    may exceed 1, are shares. Raises UserError for other shapes.
    """
    reference, features = _features(reference, features)
    if min(len(reference), len(features)) <= k + 1:
        raise UserError(f"{len(reference)} and {len(features)} images; neighbourhoods of {k} need more; add images")
    real, made = _radii(reference, k), _radii(features, k)
    inside, nearest, recalled = np.zeros(len(features), np.int64), np.empty(len(reference)), 0
    for start, rows, distance in distance_blocks(reference, features):
        inside += (distance < real[rows, None]).sum(axis=0)  # in how many real neighbourhoods each image lies
        recalled += int((distance < made[None]).any(axis=1).sum())
        nearest[start : start + len(distance)] = distance.min(axis=1)
    return {
        "precision": float((inside > 0).mean()),
        "recall": recalled / len(reference),
        "density": float(inside.sum() / (k * len(features))),
        "coverage": float((nearest < real).mean()),
    }


def _radii(x: np.ndarray, k: int) -> np.ndarray:
    """Distance of each row to its k-th nearest other row, (N,)."""
    found = [np.partition(distance, k, axis=1)[:, k] for _, _, distance in distance_blocks(x, x)]  # itself is the first
    return np.concatenate(found)


def distance_blocks(x: np.ndarray, y: np.ndarray):
    """Euclidean distances of float64 (N, D) and (M, D): first row, slice and (<= BLOCK, M) for each block of rows of x.

    From |a|^2 + |b|^2 - 2 a.b, which is some hundred times as fast as sums of squared differences.
    """
    squares = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, start + BLOCK)
        distance = x[rows] @ y.T
        distance *= -2
        distance += np.square(x[rows]).sum(axis=1)[:, None]
        distance += squares
        if x is y:
            distance[np.arange(len(distance)), np.arange(start, start + len(distance))] = 0
        np.sqrt(np.maximum(distance, 0, out=distance), out=distance)
        yield start, rows, distance


def _features(x, y) -> tuple[np.ndarray, np.ndarray]:
    check_shape(x, y)
    return finite(x), finite(y)


def check_shape(x, y) -> None:
    """Raise UserError unless both are features (N, D), of two rows or more each, and of one D."""
    if np.ndim(x) != 2 or np.ndim(y) != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise UserError(
            f"features are two sets (N, D) of at least 2 rows and one D; these are {np.shape(x)} and {np.shape(y)}"
        )


def finite(values: np.ndarray, first: int = 0) -> np.ndarray:
    """As float64; `first` is the number of the first row, for the message."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise UserError(
            f"{len(bad)} of {len(values)} rows of features are not finite, row {first + bad[0]} first; extract anew"
        )
    return values
