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
from synthmri.scans.scan import BadFile
from synthmri.scans.splits import Fractions

BORDER = 12  # pixels of black around an image, in which its cubic spline dies away
HEAD_MM = (60, 450)  # the longest side of a head, or of a brain: a newborn's is 90, one with neck and shoulders 400


CONTRASTS = ("T1w", "T1ce", "T2w", "FLAIR", "PD")


class Assume(Section):
    """What is true of pictures that cannot tell; "" where it is not known."""

    contrast: Literal["", *CONTRASTS]
    plane: Literal["", "axial", "coronal", "sagittal"]


class Data(Section):
    """Section `data`: what is made of the scans. params.yaml explains each key."""

    source: Literal["simulated", "raw"]
    subjects: Literal["check", "confirmed"]
    assume: Assume
    contrasts: tuple[Literal[*CONTRASTS, "unknown"], ...]
    plane: Literal["axial", "coronal", "sagittal"]
    depth_mm: tuple[float, float]
    slice_step: int = Field(ge=1, le=100)
    image_size: int = Field(ge=64, le=1024, multiple_of=8)
    field_of_view_mm: float = Field(ge=120, le=400)
    window_percentiles: tuple[float, float]
    min_head_fraction: float = Field(ge=0, le=0.9)
    channel: Literal[0, 1, 2] | None = None
    label_from: Literal["names", "mask"] = "names"
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
    """images: uint8 (N, size, size). depth_mm: of each image, or None for pictures. slice_mm: distance of the volume's
    slices, whichever of them are taken, or None. dropped: reason -> number of slices that were left out. masks: uint8,
    shaped as the images, 255 in a lesion, or None where no mask is known."""

    images: np.ndarray
    depth_mm: list[float] | None
    slice_mm: float | None
    dropped: Counter
    masks: np.ndarray | None = None


def from_volume(
    volume: np.ndarray, spacing_mm: tuple[float, float, float], data: Data, mask: np.ndarray | None = None
) -> Slices:
    """float (X, Y, Z), RAS -> slices along `data.plane`, from the vertex, the forehead or the left side on.

    All slices share one window and one centre: that of the head's bounding box, so that a head keeps its place and
    size from slice to slice. Axial and coronal images have the patient's left on their right, as radiologists read
    them; sagittal images look to the left. Raises UserError where all of the head has one value, BadFile where it is
    far too small or too large for one. mask: where its lesions are, bool, as the volume.
    """
    volume, spacing = _stack(on_black(volume), spacing_mm, data.plane)
    head = head_mask(volume, spacing)
    if not head.any():
        raise UserError("no head stands out from the background")
    lo, hi = _window(volume[head], data)
    spans = []  # first and last slice, row and column of the head
    for axis in range(3):
        where = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
        spans.append((where[0], where[-1] + 1))
    longest = max((last - first) * mm for (first, last), mm in zip(spans, spacing, strict=True))
    if not HEAD_MM[0] <= longest <= HEAD_MM[1]:
        raise BadFile(
            "geometry",
            f"shows a head {longest:.3g} mm long, {HEAD_MM[0]} to {HEAD_MM[1]} mm are read: the size of its voxels, "
            f"{' x '.join(f'{mm:.3g}' for mm in spacing_mm)} mm, is wrong; mend its header",
        )
    first, centre = spans[0][0], []
    for axis, (start, last) in enumerate(spans):
        if axis:
            if axis == 1 and data.plane != "axial":  # however much neck there is below, the vertex stays on the image
                last = min(last, start + data.field_of_view_mm / spacing[axis])
            centre.append((start + last) / 2 * spacing[axis])
    share = head.sum((1, 2)) * spacing[1] * spacing[2] / data.field_of_view_mm**2

    if mask is not None:
        mask, _ = _stack(mask, spacing_mm, data.plane)
    images, marks, depths, dropped = [], [], [], Counter(outside_depth=0, empty=0)
    for index in range(0, len(volume), data.slice_step):
        depth = (index - first) * spacing[0]
        if not data.depth_mm[0] <= depth <= data.depth_mm[1]:
            dropped["outside_depth"] += 1
        elif share[index] < data.min_head_fraction or not head[index].any():
            dropped["empty"] += 1
        else:
            image = np.clip((volume[index] - lo) / (hi - lo), 0, 1)
            square = (spacing[1:], centre, data.field_of_view_mm, data.image_size)
            images.append(to_uint8(_resample(image, *square)))
            depths.append(float(depth))
            if mask is not None:
                marks.append(_nearest(mask[index], *square))
    masks = None if mask is None else _pile(marks, data.image_size)
    return Slices(_pile(images, data.image_size), depths, float(spacing[0]), dropped, masks)


def from_pictures(stack: np.ndarray, data: Data, mask: np.ndarray | None = None) -> Slices:
    """float (N, H, W), upright -> slices, each with a window of its own, padded to a square and fitted to size.

    A picture of the right size is not resampled. Empty ones and such of one value are dropped and counted. mask: where
    lesions are, bool, as the stack.
    """
    images, marks, dropped = [], [], Counter(empty=0)
    for index, picture in enumerate(map(on_black, stack)):
        head = head_mask(picture)
        if not head.any() or head.mean() < data.min_head_fraction or picture.min() == picture.max():
            dropped["empty"] += 1
            continue
        lo, hi = _window(picture[head], data)
        side = max(picture.shape)
        centre = [side / 2 - (side - length) // 2 for length in picture.shape]  # whole pixels of padding
        image = np.clip((picture - lo) / (hi - lo), 0, 1)
        square = ((1.0, 1.0), centre, side, data.image_size)
        images.append(to_uint8(_resample(image, *square)))
        if mask is not None:
            marks.append(_nearest(mask[index], *square))
    masks = None if mask is None else _pile(marks, data.image_size)
    return Slices(_pile(images, data.image_size), None, None, dropped, masks)


def on_black(image: np.ndarray) -> np.ndarray:
    """The same float image (2-D or 3-D), where what is constant around the head takes the least value of the rest.

    Such are the zeros around a brain of z-scores, which are grey among its values, white paper around a picture, and
    values that pad. A background that is dark as usual stays as it is. Raises BadFile where it is bright otherwise, as
    in a negative.
    """
    border = _border(image)
    lo, hi, ground = float(image.min()), float(image.max()), float(np.median(border))
    span = hi - lo
    constant = (border == ground).mean() >= 0.5
    if ground - lo <= 0.03 * span:
        if constant and ground == lo < 0:
            least = float(image.min(where=image > lo, initial=hi))
            if lo <= -100 <= least or least - lo > 3 * (hi - least):  # a value that pads, far below what was measured
                return np.maximum(image, image.dtype.type(min(least, 0)))
        return image
    white = ground - lo >= 0.85 * span
    if image.ndim == 2:
        even = (np.abs(border - ground) <= 0.015 * span).mean()  # JPEG leaves a constant nearly so
        negative = white and even < 0.8 and (border - lo >= 0.75 * span).mean() >= 0.8
        constant = even >= 0.5
    else:  # is on no paper; but values that pad lie far above the rest
        negative = white and not (constant and hi - float(image.max(where=image < ground, initial=lo)) > 0.5 * span)
    if negative:
        raise BadFile("polarity", "is bright around the head: a negative? invert it, or remove it")
    if not constant:
        return image
    slack = 0.06 if white else 0.0 if (border == ground).mean() >= 0.5 else 0.015
    parts, _ = ndimage.label(np.abs(image - ground) <= slack * span)
    at_border = np.unique(_border(parts))
    outside = np.isin(parts, at_border[at_border > 0])
    if white and image.ndim == 2:  # and the rim between paper and head, and specks on it
        outside = ~_largest(ndimage.binary_erosion(~outside))
    return np.where(outside, image[~outside].min(initial=hi), image)


def _border(image: np.ndarray) -> np.ndarray:
    """The values on all sides of an array, in a row."""
    sides = [np.moveaxis(image, axis, 0)[side] for axis in range(image.ndim) for side in (0, -1)]
    return np.concatenate([side.ravel() for side in sides])


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
    return _largest(smooth > 0.5 * threshold)


def _largest(mask: np.ndarray) -> np.ndarray:
    """bool, its largest connected part."""
    parts, _ = ndimage.label(mask)
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
    places, scale = _places(mm, centre, side, size)
    units = np.eye(length)
    if scale > 1:
        units = ndimage.gaussian_filter1d(units, (scale - 1) / 2, axis=0, mode="constant")
    units = np.pad(units, ((BORDER, BORDER), (0, 0)))
    first, last = -BORDER, length - 1 + BORDER
    weights = make_interp_spline(np.arange(first, last + 1), units)(places)
    weights[(places < first) | (places > last)] = 0
    return weights


def _places(mm: float, centre: float, side: float, size: int) -> tuple[np.ndarray, float]:
    """Where along one side of the input the pixels of the output lie, in its pixels, and how many one takes."""
    scale = side / size / mm
    return (centre - side / 2) / mm + scale / 2 - 0.5 + scale * np.arange(size), scale


def _nearest(mask: np.ndarray, spacing, centre, side: float, size: int) -> np.ndarray:
    """bool (H, W) -> uint8 (size, size) over the square of `_resample`: 255 where the nearest pixel is set."""
    out = np.zeros((size, size), np.uint8)
    rows, columns = (
        np.rint(_places(mm, middle, side, size)[0]).astype(int) for mm, middle in zip(spacing, centre, strict=True)
    )
    down, along = ((places >= 0) & (places < n) for places, n in zip((rows, columns), mask.shape, strict=True))
    out[np.ix_(down, along)] = np.where(mask[np.ix_(rows[down], columns[along])], 255, 0)
    return out


def _pile(images: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack(images) if images else np.zeros((0, size, size), np.uint8)
