"""Oriented volumes and pictures -> 8-bit slices on one canonical field of view."""

from collections import Counter
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field, field_validator
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section
from synthmri.scans.splits import Fractions

BORDER = 12  # pixels of black around an image, in which its cubic spline dies away


class Data(Section):
    """Section `data`: what is made of the scans. params.yaml explains each key."""

    source: Literal["simulated", "raw"]
    contrasts: tuple[Literal["T1w", "T1ce", "T2w", "FLAIR", "PD", "unknown"], ...]
    plane: Literal["axial", "coronal", "sagittal"]
    depth_mm: tuple[float, float]
    slice_step: int = Field(ge=1, le=100)
    image_size: int = Field(ge=64, le=1024, multiple_of=8)
    field_of_view_mm: float = Field(ge=120, le=400)
    window_percentiles: tuple[float, float]
    min_head_fraction: float = Field(ge=0, le=0.9)
    split: Fractions
    seed: int = Field(ge=0)
    classes: tuple[str, ...]
    border_gap: int = Field(ge=0, le=1000)
    duplicate_correlation: float = Field(ge=0.9, le=1)
    max_bad_fraction: float = Field(ge=0, le=1)

    @field_validator("depth_mm")
    @classmethod
    def _range(cls, depth):
        if not 0 <= depth[0] < depth[1] <= 400:
            raise ValueError("[first, last] must rise, from 0 to at most 400 mm")
        return depth

    @field_validator("window_percentiles")
    @classmethod
    def _window(cls, window):
        if not (0 <= window[0] <= 25 and 75 <= window[1] <= 100):
            raise ValueError("the lower must be from 0 to 25, the upper from 75 to 100")
        return window


class Slices(NamedTuple):
    """images: uint8 (N, size, size). depth_mm: of each image, or None for pictures. slice_mm: distance of
    neighbouring images, or None. dropped: reason -> number of slices that were left out."""

    images: np.ndarray
    depth_mm: list[float] | None
    slice_mm: float | None
    dropped: Counter


def from_volume(volume: np.ndarray, spacing_mm: tuple[float, float, float], data: Data) -> Slices:
    """float (X, Y, Z), RAS -> slices along `data.plane`, from the vertex, the forehead or the left side on.

    All slices share one window and one centre: that of the head's bounding box, so that a head keeps its place and
    size from slice to slice. Axial and coronal images have the patient's left on their right, as radiologists read
    them; sagittal images look to the left. Raises UserError where all of the head has one value.
    """
    volume, spacing = _stack(volume, spacing_mm, data.plane)
    head = head_mask(volume, spacing)
    if not head.any():
        raise UserError("no head stands out from the background")
    lo, hi = _window(volume[head], data)
    first, centre = 0, []
    for axis in range(3):
        where = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
        if axis == 0:
            first = where[0]
        else:
            last = where[-1] + 1
            if axis == 1 and data.plane != "axial":  # however much neck there is below, the vertex stays on the image
                last = min(last, where[0] + data.field_of_view_mm / spacing[axis])
            centre.append((where[0] + last) / 2 * spacing[axis])
    share = head.sum((1, 2)) * spacing[1] * spacing[2] / data.field_of_view_mm**2

    images, depths, dropped = [], [], Counter(outside_depth=0, empty=0)
    for index in range(0, len(volume), data.slice_step):
        depth = (index - first) * spacing[0]
        if not data.depth_mm[0] <= depth <= data.depth_mm[1]:
            dropped["outside_depth"] += 1
        elif share[index] < data.min_head_fraction or not head[index].any():
            dropped["empty"] += 1
        else:
            image = np.clip((volume[index] - lo) / (hi - lo), 0, 1)
            images.append(to_uint8(_resample(image, spacing[1:], centre, data.field_of_view_mm, data.image_size)))
            depths.append(float(depth))
    return Slices(_pile(images, data.image_size), depths, float(spacing[0] * data.slice_step), dropped)


def from_pictures(stack: np.ndarray, data: Data) -> Slices:
    """float (N, H, W), upright -> slices, each with a window of its own, padded to a square and fitted to size.

    A picture of the right size is not resampled. Empty ones and such of one value are dropped and counted.
    """
    images, dropped = [], Counter(empty=0)
    for picture in stack:
        head = head_mask(picture)
        if not head.any() or head.mean() < data.min_head_fraction or picture.min() == picture.max():
            dropped["empty"] += 1
            continue
        lo, hi = _window(picture[head], data)
        side = max(picture.shape)
        centre = [side / 2 - (side - length) // 2 for length in picture.shape]  # whole pixels of padding
        image = np.clip((picture - lo) / (hi - lo), 0, 1)
        images.append(to_uint8(_resample(image, (1.0, 1.0), centre, side, data.image_size)))
    return Slices(_pile(images, data.image_size), None, None, dropped)


def head_mask(image: np.ndarray, spacing_mm: tuple[float, ...] | None = None) -> np.ndarray:
    """bool, shaped as the float image (2-D or 3-D): the largest part above half of Otsu's threshold, after smoothing.

    Half, as Otsu's threshold parts bright tissue from dark, and what is sought is all tissue from air.
    """
    from skimage.filters import threshold_otsu

    image = image - image.min()
    # Every second voxel along the long sides is enough where only a threshold is sought.
    some = tuple(slice(None, None, 2 if length > 64 else 1) for length in image.shape)
    positive = image[some][image[some] > 0]
    if not positive.size:  # all that is bright lies between
        positive = image[image > 0]
    bright = np.minimum(image, np.percentile(positive, 99.5) if positive.size else 0)
    smooth = ndimage.gaussian_filter(bright, [2.0 / mm for mm in spacing_mm or [1.0] * image.ndim], truncate=2)
    if smooth.min() == smooth.max():
        return np.zeros(image.shape, bool)
    threshold = threshold_otsu(smooth[some])
    parts, _ = ndimage.label(smooth > 0.5 * threshold)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _window(head: np.ndarray, data: Data) -> tuple[float, float]:
    """The values that become black and white."""
    lo, hi = np.percentile(head, data.window_percentiles)
    if not lo < hi:
        raise UserError(f"all of the head has the value {hi:g}: this is a mask, no image; remove it")
    return float(lo), float(hi)


def _stack(volume: np.ndarray, spacing: tuple[float, ...], plane: str) -> tuple[np.ndarray, list[float]]:
    """(X, Y, Z) RAS -> a view (slice, row, column) of upright images, and the spacing in the same order."""
    axes = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[plane]
    # Turned round, the axes run from right to left, anterior to posterior, superior to inferior: as on the image.
    stack = volume[::-1, ::-1, ::-1].transpose(axes)
    if plane == "sagittal":  # counted from the left side
        stack = stack[::-1]
    return stack, [spacing[axis] for axis in axes]


def _resample(image: np.ndarray, spacing, centre, side: float, size: int) -> np.ndarray:
    """(H, W) with pixels of `spacing` -> (size, size) over a square of `side` about `centre`; outside is 0.

    `centre` counts from the outer edge of the first pixel, in the unit of spacing and side. Cubic; where the image
    shrinks it is smoothed first, so that fine detail cannot turn into moire. All of that is linear and treats rows and
    columns apart, so it is a matrix from either side.
    """
    rows, columns = (
        _interpolation(length, mm, middle, side, size)
        for length, mm, middle in zip(image.shape, spacing, centre, strict=True)
    )
    return np.linalg.multi_dot([rows, image, columns.T])


@lru_cache(maxsize=2)  # all slices of a volume share theirs
def _interpolation(length: int, mm: float, centre: float, side: float, size: int) -> np.ndarray:
    """float64 (size, length): what `_resample` does along one side, found by doing it to every unit vector."""
    scale = side / size / mm  # input pixels per output pixel
    places = (centre - side / 2) / mm + scale / 2 - 0.5 + scale * np.arange(size)
    units = np.eye(length)
    if scale > 1:
        units = ndimage.gaussian_filter1d(units, (scale - 1) / 2, axis=0, mode="constant")
    units = np.pad(units, ((BORDER, BORDER), (0, 0)))
    first, last = -BORDER, length - 1 + BORDER
    weights = make_interp_spline(np.arange(first, last + 1), units)(places)
    weights[(places < first) | (places > last)] = 0
    return weights


def _pile(images: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack(images) if images else np.zeros((0, size, size), np.uint8)
