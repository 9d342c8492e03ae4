"""Slices: oriented volumes and pictures -> 8-bit slices on one canonical field of view, split by subject."""

import hashlib
from collections import Counter
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator
from scipy import ndimage

from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section

SPLITS = ("train", "val", "test")


class Fractions(Section):
    """Shares of the subjects; each split gets one at the least."""

    train: float = Field(gt=0, lt=1)
    val: float = Field(gt=0, lt=1)
    test: float = Field(gt=0, lt=1)

    @model_validator(mode="after")
    def _sum(self):
        total = self.train + self.val + self.test
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the three sum to {total:g} and must sum to 1")
        return self


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
    salt: str = Field(min_length=1)
    border_gap: int = Field(ge=0, le=1000)
    duplicate_correlation: float = Field(ge=0.9, le=1)
    max_bad_fraction: float = Field(ge=0, le=1)
    workers: int = Field(ge=1, le=64)

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


# Volumes and pictures -> slices --------------------------------------------------------------------------------------


def from_volume(volume: np.ndarray, spacing_mm: tuple[float, float, float], data: Data) -> Slices:
    """float (X, Y, Z), RAS -> slices along `data.plane`, from the vertex, the forehead or the left side on.

    All slices share one window and one centre: that of the head's bounding box, so that a head keeps its place and
    size from slice to slice. Axial and coronal images have the patient's left on their right, as radiologists read
    them; sagittal images look to the left. Raises UserError where all of the head has one value.
    """
    head = head_mask(volume, spacing_mm)
    lo, hi = _window(volume[head], data)
    (volume, head), spacing = _stacks([volume, head], spacing_mm, data.plane)
    first, centre = 0, []
    for axis in range(3):
        where = np.flatnonzero(head.any(tuple(other for other in range(3) if other != axis)))
        if axis == 0:
            first = where[0]
        else:
            centre.append((where[0] + where[-1] + 1) / 2 * spacing[axis])
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
        if head.mean() < data.min_head_fraction or picture.min() == picture.max():
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
    bright = np.minimum(image, np.percentile(image[image > 0], 99.5) if image.any() else 0)
    smooth = ndimage.gaussian_filter(bright, [2.0 / mm for mm in spacing_mm or [1.0] * image.ndim], truncate=2)
    if smooth.min() == smooth.max():
        return np.zeros(image.shape, bool)
    parts, _ = ndimage.label(smooth > 0.5 * threshold_otsu(smooth))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return parts == sizes.argmax()


def _window(head: np.ndarray, data: Data) -> tuple[float, float]:
    """The values that become black and white."""
    lo, hi = np.percentile(head, data.window_percentiles)
    if not lo < hi:
        raise UserError(f"all of the head has the value {hi:g}: this is a mask, no image; remove it")
    return float(lo), float(hi)


def _stacks(volumes: list[np.ndarray], spacing: tuple[float, ...], plane: str) -> tuple[list[np.ndarray], list[float]]:
    """(X, Y, Z) RAS -> views (slice, row, column) of upright images, and their spacing in the same order."""
    axes = {"axial": (2, 1, 0), "coronal": (1, 2, 0), "sagittal": (0, 2, 1)}[plane]
    # Turned round, the axes run from right to left, anterior to posterior, superior to inferior: as on the image.
    stacks = [volume[::-1, ::-1, ::-1].transpose(axes) for volume in volumes]
    if plane == "sagittal":  # counted from the left side
        stacks = [stack[::-1] for stack in stacks]
    return stacks, [spacing[axis] for axis in axes]


def _resample(image: np.ndarray, spacing, centre, side: float, size: int) -> np.ndarray:
    """(H, W) with pixels of `spacing` -> (size, size) over a square of `side` about `centre`; outside is 0.

    `centre` counts from the outer edge of the first pixel, in the unit of spacing and side. Cubic; where the image
    shrinks it is smoothed first, so that fine detail cannot turn into moire.
    """
    scale = np.array([side / size / mm for mm in spacing])  # input pixels per output pixel
    start = (np.array(centre) - side / 2) / spacing + scale / 2 - 0.5
    if (scale > 1).any():
        image = ndimage.gaussian_filter(image, np.maximum(0, (scale - 1) / 2), mode="constant")
    return ndimage.affine_transform(image, scale, start, (size, size), order=3, mode="grid-constant")


def _pile(images: list[np.ndarray], size: int) -> np.ndarray:
    return np.stack(images) if images else np.zeros((0, size, size), np.uint8)


# Subjects and splits --------------------------------------------------------------------------------------------------


def pseudonym(subject: str, salt: str) -> str:
    """The name under which a subject appears in outputs."""
    return f"sub-{hashlib.sha256((salt + subject).encode()).hexdigest()[:8]}"


def split(subjects: list[str], fractions: Fractions, seed: int) -> dict[str, str]:
    """Subject -> train, val or test; the order of `subjects` is of no matter. Raises UserError below 3 subjects."""
    subjects = sorted(set(subjects))
    if len(subjects) < len(SPLITS):
        raise UserError(
            f"{len(subjects)} subject(s) found, at least 3 are needed: train, val and test share none. Add subjects, "
            "or name the folders at the top (or the files) by subject, such as sub-01, if these hold several"
        )
    order = np.random.default_rng(seed).permutation(len(subjects))
    names = np.repeat(SPLITS, _shares(len(subjects), fractions))
    return {subjects[index]: str(name) for index, name in zip(order, names, strict=True)}


def blocks(count: int, fractions: Fractions, gap: int) -> list[str]:
    """The split of each of `count` neighbouring pictures whose subjects are not known: train first, test last.

    Neighbours are likely of one person, so `gap` pictures between two splits get "" and are to be dropped. Where too
    few are there for this, all go to train.
    """
    usable = count - 2 * gap
    if usable < len(SPLITS):
        return ["train"] * count
    train, val, test = _shares(usable, fractions)
    return ["train"] * train + [""] * gap + ["val"] * val + [""] * gap + ["test"] * test


def _shares(count: int, fractions: Fractions) -> tuple[int, int, int]:
    """Train, val and test of `count` (3 or more), each 1 at the least."""
    test = min(max(1, round(fractions.test * count)), count - 2)
    val = min(max(1, round(fractions.val * count)), count - test - 1)
    return count - val - test, val, test


def duplicates(images: np.ndarray, splits: np.ndarray, correlation: float) -> np.ndarray:
    """What is the same image in two splits: "", "exact" or "near" for each of N, the latter two in val and test only.

    images: uint8 (N, H, W); splits: N of train, val, test or "", which is left aside. Test is compared with train,
    val with train and what is left of test. Near: Pearson correlation above `correlation` after shrinking to 32 x 32.
    Raises UserError where more than half of test is in train too.
    """
    splits = np.asarray(splits)
    found = np.full(len(splits), "", dtype="<U5")
    small = thumbnails(images)
    digest = np.array([hashlib.sha256(np.ascontiguousarray(image)).hexdigest() for image in images])
    for later, earlier in (("test", ["train"]), ("val", ["train", "test"])):
        ours = np.flatnonzero(splits == later)
        theirs = np.flatnonzero(np.isin(splits, earlier) & (found == ""))
        for start in range(0, len(ours), 1024):  # bounds the matrix below to 1024 x N
            rows = ours[start : start + 1024]
            if len(theirs):
                found[rows[(small[rows] @ small[theirs].T).max(1) > correlation]] = "near"
        found[ours[np.isin(digest[ours], digest[theirs])]] = "exact"
        if later == "test" and 2 * np.count_nonzero(found[ours]) > len(ours):
            raise UserError(
                f"the split leaks: {np.count_nonzero(found[ours])} of {len(ours)} test images are in train too. Is one "
                "patient there under two names? Put both under one, or raise data.duplicate_correlation"
            )
    return found


def thumbnails(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) -> float32 (N, 1024): of 32 x 32 pixels, of mean 0 and norm 1; a dot product is a correlation."""
    out = np.empty((len(images), 1024), dtype=np.float32)
    for row, image in zip(out, images, strict=True):
        small = Image.fromarray(np.asarray(image)).resize((32, 32), Image.Resampling.BOX)
        row[:] = np.asarray(small, dtype=np.float32).ravel()
        row -= row.mean()
        row /= max(float(np.linalg.norm(row)), 1e-6)
    return out
