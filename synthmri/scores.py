"""Scores: features or images -> numbers. Pure functions; what each number may be called stands in docs/evaluation.md.

Distances between sets (`frechet_distance`, `kernel_distance`) take features (N, D), resemblances of pairs (`ssim`,
`psnr`, `lpips_distance`) take images (N, H, W). Resemblance to the nearest train image is not quality: a constant mean
image has a higher PSNR than held-out real images have.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from skimage.metrics import structural_similarity
from torch import nn

from synthmri.errors import UserError
from synthmri.imageset import pieces
from synthmri.params import Section

BLOCK = 2048  # rows of features at a time: 20 MiB of the longest ones
# Pixels at a time. Grey levels less 128 multiply to at most 2^14, and 2^10 of these add up to 2^24, below which float32
# holds every whole number: such products are exact, in half the time and memory of float64.
EXACT = 1024
PSNR_OF_EQUALS = 100.0  # dB; stands for infinity, so that a mean over pairs stays finite


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


class Gaussian(NamedTuple):
    """count: N. mean: float64 (D,). root: float64 (at most D, D), root' root = sum of squares about the mean."""

    count: int
    mean: np.ndarray
    root: np.ndarray


def gaussian(features: np.ndarray, rows: np.ndarray | None = None, *, block: int = BLOCK) -> Gaussian:
    """The Gaussian fitted to features (N, D), or to some `rows` of them, of which one block is in memory at a time.

    Raises UserError for another shape, fewer than two rows, or values that are not finite.
    """
    _shape(features, features)
    count = len(features) if rows is None else len(rows)
    if count < 2:
        raise UserError(f"{count} row(s) of features make no Gaussian; give at least 2")
    fitted = None
    for start, piece in pieces(features, block, rows):
        values = _finite(piece, start)
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
        _shape(x, y)
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
    for start, rows, distance in _distances(reference, features):
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
    found = [np.partition(distance, k, axis=1)[:, k] for _, _, distance in _distances(x, x)]  # itself is the first
    return np.concatenate(found)


def _distances(x: np.ndarray, y: np.ndarray):
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


def nearest_distances(features: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Euclidean distance of each row (N, D) to the nearest row of (M, D): float64 (N,).

    references may be memory-mapped: a block of them is in memory at a time. Raises UserError for other shapes or values
    that are not finite.
    """
    _shape(features, references)
    features = _finite(features)
    nearest = np.full(len(features), np.inf)
    for start, piece in pieces(references, BLOCK):
        values = _finite(piece, start)
        for first, rows, distance in _distances(features, values):
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


def ms_ssim(images: np.ndarray, *, pairs: int = 50, seed: int = 0) -> float | None:
    """Mean multi-scale SSIM (Wang 2003) over random pairs of different images of one set: diversity, lower is more.

    images: uint8 (N, H, W). By torchmetrics, with the paper's five scales; None below the 176 pixels that these need.
    """
    if min(images.shape[1:]) < 176 or len(images) < 2:
        return None
    from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure

    rng = np.random.default_rng(seed)
    first = rng.integers(0, len(images), pairs)
    second = (first + rng.integers(1, len(images), pairs)) % len(images)
    values = [
        measure(_unit(images[first[i : i + 10]]), _unit(images[second[i : i + 10]]), data_range=1.0, reduction="none")
        for i in range(0, pairs, 10)
    ]
    return float(torch.cat([value.flatten() for value in values]).double().mean())


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
    _images(images, references)
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


def ssim(images: np.ndarray, references: np.ndarray) -> float:
    """Mean structural similarity of the pairs: Wang 2004 (IEEE TIP 13), eq. 13, with the paper's Gaussian window.

    The window is 11 x 11 with sigma 1.5 pixels, K1 = 0.01, K2 = 0.03, range 255.
    images, references: uint8 (N, H, W), at least 11 x 11 pixels. Returns a number in [-1, 1], 1 for equal images.
    Raises UserError for other types, sizes or counts.
    """
    _pairs(images, references)
    if min(images.shape[1:]) < 11:
        raise UserError(f"images of {images.shape[1]} x {images.shape[2]} pixels are below the 11 x 11 window of SSIM")
    values = [
        structural_similarity(a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False)
        for a, b in zip(images, references, strict=True)
    ]
    return float(np.mean(values))


def psnr(images: np.ndarray, references: np.ndarray) -> float:
    """Mean over the pairs of the peak signal-to-noise ratio, 10 log10(255^2 / MSE) dB, at most 100 dB a pair.

    The bound stands for the infinity of equal images; a single grey level of difference in one pixel of 256 x 256 is
    96 dB. images, references: uint8 (N, H, W). Returns dB.
    Raises UserError for other types, sizes or counts.
    """
    _pairs(images, references)
    errors = [np.square(a.astype(np.int64) - b).mean() for a, b in zip(images, references, strict=True)]
    values = [10 * math.log10(255**2 / error) if error else math.inf for error in errors]
    return float(np.minimum(values, PSNR_OF_EQUALS).mean())


def lpips_distance(images: np.ndarray, references: np.ndarray, model: nn.Module, *, batch: int = 64) -> float:
    """Mean perceptual distance of the pairs: LPIPS, Zhang 2018 (arXiv 1801.03924), eq. 1; of equal ones it is 0.

    images, references: uint8 (N, H, W); grey is repeated for red, green and blue. model: `features.lpips_model()`.
    Returns a number >= 0, 0 for equal images.
    Raises UserError for other types, sizes or counts.
    """
    _pairs(images, references)
    device = next(model.parameters()).device

    def tensor(grey):  # uint8 (B, H, W) -> float (B, 3, H, W) in [-1, 1]
        x = (torch.from_numpy(grey).to(device).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
        return x.contiguous(memory_format=torch.channels_last)

    total = 0.0
    with torch.inference_mode():
        for i in range(0, len(images), batch):
            pair = np.array(images[i : i + batch]), np.array(references[i : i + batch])
            apart = (pair[0] != pair[1]).any(axis=(1, 2))
            if apart.any():
                total += float(model(tensor(pair[0][apart]), tensor(pair[1][apart])).double().sum())
    return total / len(images)


def resemblance(images: np.ndarray, references: np.ndarray, lpips: nn.Module, *, batch: int = 64) -> dict[str, float]:
    """`ssim`, `psnr` (dB) and `lpips` of the pairs under these names; uint8 (N, H, W) each, errors as theirs."""
    return {
        "ssim": ssim(images, references),
        "psnr": psnr(images, references),
        "lpips": lpips_distance(images, references, lpips, batch=batch),
    }


def _features(x, y) -> tuple[np.ndarray, np.ndarray]:
    _shape(x, y)
    return _finite(x), _finite(y)


def _shape(x, y) -> None:
    if np.ndim(x) != 2 or np.ndim(y) != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise UserError(
            f"features are two sets (N, D) of at least 2 rows and one D; these are {np.shape(x)} and {np.shape(y)}"
        )


def _finite(values: np.ndarray, first: int = 0) -> np.ndarray:
    """As float64; `first` is the number of the first row, for the message."""
    values = np.asarray(values, np.float64)
    if not np.isfinite(values).all():
        bad = np.flatnonzero(~np.isfinite(values).all(axis=1))
        raise UserError(
            f"{len(bad)} of {len(values)} rows of features are not finite, row {first + bad[0]} first; extract anew"
        )
    return values


def _images(images, references) -> None:
    for array in (images, references):
        if array.dtype != np.uint8 or array.ndim != 3:
            raise UserError(f"scores of images take uint8 (N, H, W); these are {array.dtype} {array.shape}")
    if images.shape[1:] != references.shape[1:]:
        raise UserError(
            f"images of {images.shape[1:]} and {references.shape[1:]} pixels do not compare; resize one set"
        )


def _pairs(images, references) -> None:
    _images(images, references)
    if len(images) != len(references) or len(images) == 0:
        raise UserError(f"{len(images)} images and {len(references)} references make no pairs; give one for each")


def _unit(images) -> torch.Tensor:
    return torch.from_numpy(np.array(images))[:, None].float() / 255
