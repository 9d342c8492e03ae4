"""Whether images are copies of training images, or of their mirror images, which models train on too.

Two searches: by pixels as they lie, and by `likeness`, which forgives what a copy may differ in: place, angle, gain,
shading, noise, blur. benchmarks/copies.py measures what it finds.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch import nn

from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation.distances import BLOCK, check_shape, distance_blocks, finite
from synthmri.evaluation.pairs import check_images
from synthmri.imageset import pieces

# Pixels at a time. Grey levels less 128 multiply to at most 2^14, and 2^10 of these add up to 2^24, below which float32
# holds every whole number: such products are exact, in half the time and memory of float64.
EXACT = 1024

# Of `likeness`.
EDGE, SMALL_EDGE = 64, 16  # px that images are reduced to, and for the shortlist
FINE_PX, COARSE_PX = 1.0, 4.0  # of these px: standard deviations of the two Gaussians whose difference is compared
FAINT = 3.0  # grey levels: structure well below them is noise, and stays faint
ANGLES_DEG, SMALL_ANGLES_DEG = np.arange(-10, 10.1, 2.5), (-10, -5, 0, 5, 10)
SHORTLIST = 10  # references of each image


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


class Likeness(NamedTuple):
    """Of each image. largest: float64 (N,), its largest likeness to a reference, at most 1. closest: int64 (N,), which
    that is, counted as in `views`.
    """

    largest: np.ndarray
    closest: np.ndarray


def likeness(images: np.ndarray, references: np.ndarray, *, block: int = 64) -> Likeness:
    """How much each image looks like the reference that it looks most like: a correlation after rigid alignment.

    Images are reduced to EDGE pixels and to their fine structure (`_structure`), which gain and shading do not change.
    The correlation is the largest over mirror images, ANGLES_DEG and, as a product of Fourier transforms gives all at
    once, whole pixels of shift. It is worked out for the SHORTLIST references that the same search in small finds.
    images: uint8 (N, H, W), references: uint8 (M, H, W); both may be memory-mapped. Raises UserError for other types,
    other sizes, or no references.
    """
    check_images(images, references)
    if len(references) == 0:
        raise UserError("no references to find the closest of; give at least one image")
    small = [_small(_structure(piece, 2 * SMALL_EDGE)) for _, piece in pieces(references, 256)]
    small, found = _unit(torch.cat(small)).T.contiguous(), []
    for _, piece in pieces(images, block):
        listed = _shortlist(_structure(piece, 2 * SMALL_EDGE), small)
        unique, place = np.unique(listed, return_inverse=True)
        theirs = _structure(imageset.rows(references, unique), EDGE)
        theirs = torch.fft.rfft2(_unit(theirs).view_as(theirs))[torch.from_numpy(place.reshape(listed.shape))]
        most = torch.full(listed.shape, -torch.inf)
        mirrored = torch.zeros(listed.shape, dtype=torch.bool)
        for flip, view in _turned(_structure(piece, EDGE), ANGLES_DEG):
            ours = torch.fft.rfft2(_unit(view).view_as(view))
            product = torch.fft.irfft2(ours[:, None].conj() * theirs, s=(EDGE, EDGE)).flatten(2).amax(2)
            mirrored = torch.where(product > most, flip, mirrored)
            most = torch.maximum(product, most)
        best = most.argmax(dim=1, keepdim=True)
        which = np.take_along_axis(listed + mirrored.numpy() * len(references), best.numpy(), axis=1)
        found.append((most.gather(1, best).double().numpy()[:, 0], which[:, 0]))
    largest, closest = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return Likeness(np.minimum(largest, 1), closest)


def _structure(images: np.ndarray, edge: int) -> torch.Tensor:
    """uint8 (N, H, W) -> float32 (N, edge, edge): what lies between FINE_PX and COARSE_PX, at one strength everywhere.

    Coarser is shading, finer is noise; the division by the strength about a pixel lets the brain count as the skull.
    """
    grey = torch.from_numpy(np.array(images)).float()[:, None]
    grey = nn.functional.interpolate(grey, size=(edge, edge), mode="area")[:, 0].numpy()
    band = gaussian_filter(grey, (0, FINE_PX, FINE_PX)) - gaussian_filter(grey, (0, COARSE_PX, COARSE_PX))
    strength = np.sqrt(gaussian_filter(np.square(band), (0, COARSE_PX, COARSE_PX)))
    return torch.from_numpy(band / (strength + FAINT))


def _turned(structure: torch.Tensor, angles_deg: Sequence[float]) -> Iterator[tuple[bool, torch.Tensor]]:
    """Whether mirrored, and (N, S, S) as it then is at each of the angles."""
    for flip, angle in itertools.product((False, True), np.deg2rad(angles_deg)):
        cos, sin = math.cos(angle), math.sin(angle)
        turn = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(structure), 2, 3)
        view = (structure.flip(2) if flip else structure)[:, None]
        grid = nn.functional.affine_grid(turn, view.shape, align_corners=False)
        yield flip, nn.functional.grid_sample(view, grid, align_corners=False)[:, 0]


def _shortlist(structure: torch.Tensor, small: torch.Tensor) -> np.ndarray:
    """Numbers (N, SHORTLIST) of the references, columns of `small`, that images look most like when seen small."""
    most = torch.full((len(structure), small.shape[1]), -torch.inf)
    for _, view in _turned(structure, SMALL_ANGLES_DEG):
        wide = nn.functional.pad(view, (2, 2, 2, 2))
        for dy, dx in itertools.product((0, 2, 4), repeat=2):  # shifts of a small pixel
            moved = wide[:, dy : dy + view.shape[1], dx : dx + view.shape[2]]
            most = torch.maximum(most, _unit(_small(moved)) @ small)
    return most.topk(min(SHORTLIST, small.shape[1]), dim=1).indices.numpy()


def _small(structure: torch.Tensor) -> torch.Tensor:
    return nn.functional.avg_pool2d(structure[:, None], 2)[:, 0]


def _unit(maps: torch.Tensor) -> torch.Tensor:
    """(N, S, S) -> (N, S * S) of mean 0 and norm 1, so that a product is a correlation; flat ones become 0."""
    rows = maps.flatten(1)
    rows = rows - rows.mean(dim=1, keepdim=True)
    return rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-6)


def bound(honest: np.ndarray) -> float:
    """The likeness to a train image that 95 % of real images of other people stay below; honest: (M,), theirs."""
    return float(np.percentile(honest, 95))


def memorised(largest: np.ndarray, honest: np.ndarray) -> float:
    """Share of images whose largest likeness to a train image is above `bound` of honest ones.

    largest: (N,) of `likeness` of the images, honest: (M,) of real images of other people. 0.05 is what images of other
    people give; more tells of copies (Akbar 2023, arXiv 2305.07644; Dar 2024, arXiv 2402.01054, found them in diffusion
    models of small sets).
    """
    return float((largest > bound(honest)).mean())


def views(references: np.ndarray, which: np.ndarray) -> np.ndarray:
    """Copies of the references of these numbers: from M = len(references) on they count the mirror images."""
    chosen = imageset.rows(references, which % len(references))
    mirrored = which >= len(references)
    chosen[mirrored] = chosen[mirrored, :, ::-1]
    return chosen


class Closest(NamedTuple):
    """Of each image. nearest: int64 (N,), the reference at the smallest Euclidean distance of pixels. correlation:
    float64 (N,), the largest Pearson correlation of its pixels with a reference. correlated: int64 (N,), which that is.
    References are counted as in `views`.
    """

    nearest: np.ndarray
    correlation: np.ndarray
    correlated: np.ndarray


def closest_by_pixels(images: np.ndarray, references: np.ndarray, *, block: int = 256) -> Closest:
    """The reference, or its mirror image, that each image is closest to, by distance and by correlation.

    images: uint8 (N, H, W), references: uint8 (M, H, W), which may be memory-mapped: `block` of them are in memory at a
    time, and they are read once. Distances are exact. Of equally close ones the first. An image of one grey level
    correlates with nothing: 0. Raises UserError for other types or sizes, or no references.
    """
    check_images(images, references)
    if len(references) == 0:
        raise UserError("no references to find the closest of; give at least one image")
    count = len(images)
    ours = _signed(np.concatenate([images, images[:, :, ::-1]]))  # mirroring either side gives the same distance
    least, nearest = np.full(len(ours), np.inf), np.zeros(len(ours), np.int64)
    most, correlated = np.full(len(ours), -np.inf), np.zeros(len(ours), np.int64)
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
    nearest, correlated = (
        np.where(better, which[:count], which[count:] + len(references))
        for better, which in ((least[:count] <= least[count:], nearest), (most[:count] >= most[count:], correlated))
    )
    return Closest(nearest, np.clip(np.maximum(most[:count], most[count:]), -1, 1), correlated)  # rounding exceeds 1


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
