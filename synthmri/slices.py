"""Slices: oriented volumes and pictures -> 8-bit slices on one canonical field of view, split by subject."""

import hashlib
import hmac
import tempfile
from collections import Counter
from functools import lru_cache
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import Image
from pydantic import Field, field_validator, model_validator
from scipy import ndimage
from scipy.interpolate import make_interp_spline

from synthmri import imageset
from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section

SPLITS = ("train", "val", "test")
BORDER = 12  # pixels of black around an image, in which its cubic spline dies away
BLOCK = 1024  # small images compared at a time, with 4 as many


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


# Volumes and pictures -> slices --------------------------------------------------------------------------------------


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


# Subjects and splits --------------------------------------------------------------------------------------------------


def pseudonym(subject: str, salt: str) -> str:
    """The name under which a subject appears in outputs: who does not know the salt cannot try ids one by one."""
    return f"sub-{hmac.new(salt.encode(), subject.encode(), hashlib.sha256).hexdigest()[:16]}"


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


def duplicates(
    images: np.ndarray, splits: np.ndarray, correlation: float, *, scratch: Path | None = None
) -> np.ndarray:
    """What is the same image in two splits: "", "exact" or "near" for each of N, the latter two in val and test only.

    images: uint8 (N, H, W), may be memory-mapped; splits: N of train, val, test or "", which is left aside. Test is
    compared with train, val with train and what is left of test. Near: Pearson correlation above `correlation` after
    shrinking to 32 x 32. scratch: folder for the small images (1 KiB each) while this runs; None: the system's.
    Raises UserError where more than half of test is in train too.
    """
    splits = np.asarray(splits)
    found = np.full(len(splits), "", dtype="<U5")
    with tempfile.TemporaryFile(dir=scratch) as file:
        small, digest = _small(images, file)
        bound = _bound(small)
        for later, earlier in (("test", ["train"]), ("val", ["train", "test"])):
            ours = np.flatnonzero(splits == later)
            theirs = np.flatnonzero(np.isin(splits, earlier) & (found == ""))
            for start in range(0, len(ours), BLOCK):
                rows = ours[start : start + BLOCK]
                found[rows[_largest(rows, theirs, small, bound, correlation) > correlation]] = "near"
            found[ours[np.isin(digest[ours], digest[theirs])]] = "exact"
            if later == "test" and 2 * np.count_nonzero(found[ours]) > len(ours):
                raise UserError(
                    f"the split leaks: {np.count_nonzero(found[ours])} of {len(ours)} test images are in train too. Is "
                    "one patient there under two names? Put both under one, or raise data.duplicate_correlation"
                )
    return found


def thumbnails(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) -> float32 (N, 1024): of 32 x 32 pixels, of mean 0 and norm 1; a dot product is a correlation."""
    return _standard(_shrunk(images))


def _shrunk(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, 1024), the means of 32 x 32 fields."""
    out = np.empty((len(images), 1024), dtype=np.uint8)
    for row, image in zip(out, images, strict=True):
        row[:] = np.asarray(Image.fromarray(np.asarray(image)).resize((32, 32), Image.Resampling.BOX)).ravel()
    return out


def _standard(small: np.ndarray) -> np.ndarray:
    """uint8 (N, 1024) -> float32 (N, 1024) of mean 0 and norm 1 (0 where an image has one value)."""
    out = small.astype(np.float32)
    for row in out:
        row -= row.mean()
        row /= max(float(np.linalg.norm(row)), 1e-6)
    return out


def _small(images: np.ndarray, file) -> tuple[np.ndarray, np.ndarray]:
    """The shrunk images, uint8 (N, 1024) memory-mapped from `file`, and the hexadecimal SHA-256 of each, (N,)."""
    digest = np.empty(len(images), "S64")
    for start, piece in imageset.pieces(images, imageset.PIECE):
        file.write(_shrunk(piece).data)
        digest[start : start + len(piece)] = [hashlib.sha256(image).hexdigest() for image in piece]
    file.flush()
    return np.memmap(file, np.uint8, "r", shape=(len(images), 1024)), digest


def _bound(small: np.ndarray) -> np.ndarray:
    """float32 (N, 33) whose dot products are at least the correlations of the shrunk images: a quick first look.

    An image of norm 1 is p in the span of some orthonormal directions and the rest r, and by Cauchy and Schwarz
    a.b = p(a).p(b) + r(a).r(b) <= p(a).p(b) + |r(a)| |r(b)|. The directions are those along which images differ most
    (principal components of up to 2048 of them), but any would do: they change the time, never the result.
    """
    some = imageset.evenly(len(small), 2048)
    values = _standard(np.array(small[some]))
    _, vectors = np.linalg.eigh(values.T @ values)
    axes = vectors[:, -32:]
    out = np.empty((len(small), 33), np.float32)
    for start, piece in imageset.pieces(small, BLOCK):
        values = _standard(piece)
        rows = out[start : start + len(piece)]
        rows[:, :32] = values @ axes
        rows[:, 32] = np.linalg.norm(values - rows[:, :32] @ axes.T, axis=1)
    return out


def _largest(
    rows: np.ndarray, theirs: np.ndarray, small: np.ndarray, bound: np.ndarray, correlation: float
) -> np.ndarray:
    """The largest correlation of each of `rows` with any of `theirs`, (len(rows),); below `correlation` any value."""
    ours = _standard(np.array(small[rows]))
    largest = np.full(len(rows), -1.0, np.float32)
    for start in range(0, len(theirs), 4 * BLOCK):
        part = theirs[start : start + 4 * BLOCK]
        likely = part[(bound[rows] @ bound[part].T).max(0) > correlation - 1e-4]  # a margin for float32
        if len(likely):
            np.maximum(largest, (ours @ _standard(np.array(small[likely])).T).max(1), out=largest)
    imageset.release(small)
    return largest
