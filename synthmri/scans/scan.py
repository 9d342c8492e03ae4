"""What a scan is, and what no file may be: the types that readers give back, and the checks that they share."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import nibabel
import numpy as np

from synthmri.errors import UserError

FORMATS = "NIfTI (.nii, .nii.gz), DICOM, pictures (.png, .jpg, .tif) and tensors (.npy, .pt)"
MAX_VOXELS = 2**28  # 1 GiB as float32: far above any head scan, far below what a damaged header claims
MIN_SLICES = 3  # fewer is a localizer, not a scan
MIN_SIDE = 16  # pixels of a picture
SPACING_MM = (0.05, 20.0)  # beyond this the header means another unit, or nothing
SCOUT = (9, 8.0)  # at most so many slices, at least so many mm apart, plan a scan and are none


class BadFile(UserError):
    """A file that is not used. The message names it; `category` does not, so that it can be counted in public."""

    def __init__(self, category: str, message: str):
        super().__init__(category, message)  # both are arguments, so that it survives the way between processes
        self.category = category

    def __str__(self) -> str:
        return self.args[1]

    @property
    def name(self) -> str:
        """The file at fault, as its message begins."""
        return self.args[1].partition(": ")[0]


class LeftOut(BadFile):
    """What is whole but no anatomical scan, and so no failure. `category` is the reason, in the words of `kind`."""


@dataclass(frozen=True)
class Source:
    """What gives one scan or one stack of pictures.

    paths: one file, or the files of a DICOM series. subject: None where nothing tells whose it is.
    contrast: T1w, T1ce, T2w, FLAIR, PD or "". label: class, or "". name: path under the root, for messages.
    plane: of pictures, where a person said it. mask: of its lesions, or None. doubts: what of all this is a guess, in
    whole sentences.
    """

    paths: tuple[Path, ...]
    kind: Literal["nifti", "dicom", "picture", "tensor"]
    subject: str | None
    contrast: str
    label: str
    name: str
    plane: str = ""
    mask: Path | None = None
    doubts: tuple[str, ...] = ()

    @property
    def block(self) -> str:
        """Where neighbours may be of one person although no subject is known: the folder, or the tensor file."""
        return self.name if self.kind == "tensor" else str(PurePosixPath(self.name).parent)


class Scan(NamedTuple):
    """data: float32, finite. A volume is (X, Y, Z) towards right, anterior, superior, with voxels of spacing_mm;
    pictures are an upright stack (N, H, W) and have spacing_mm None."""

    data: np.ndarray
    spacing_mm: tuple[float, float, float] | None


def check_size(shape: tuple[int, ...]) -> None:
    """Raise BadFile unless a shape that a header claims has 1 to MAX_VOXELS values."""
    voxels = int(np.prod([int(n) for n in shape], dtype=object))
    if not 0 < voxels <= MAX_VOXELS:
        raise BadFile("size", f"its header claims {' x '.join(map(str, shape))} values; 1 to {MAX_VOXELS} are read")


def check_numbers(dtype: np.dtype) -> None:
    """Raise BadFile unless values of this type are real numbers."""
    if dtype.kind not in "buif":
        raise BadFile("values", f"holds values of type {dtype}; real numbers are read, so save the magnitude")


def finite(data: np.ndarray) -> np.ndarray:
    """NaN and infinity become background: 0, or the least value below. Refuses what is then the same everywhere."""
    good = np.isfinite(data)
    if not good.any():
        raise BadFile("values", "holds no finite value; export it again")
    data = data if good.all() else np.where(good, data, min(data[good].min(), np.float32(0)))
    if data.min() == data.max():
        raise BadFile("constant", f"is {data.flat[0]:g} everywhere; export it again or remove it")
    return data


def oriented(data: np.ndarray, affine: np.ndarray) -> Scan:
    """float32 (I, J, K) and its affine to RAS mm (4, 4) -> the same voxels, the axes nearest to R, A, S."""
    if min(data.shape) < MIN_SLICES:
        raise LeftOut("scout", f"is {data.shape} voxels, at least {MIN_SLICES} each way are needed; a localizer?")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    lo, hi = SPACING_MM
    slices, gap = data.shape[spacing.argmax()], spacing.max()
    if slices <= SCOUT[0] and SCOUT[1] <= gap <= 200:
        raise LeftOut("scout", f"is {slices} slices {gap:.3g} mm apart; a localizer?")
    if not np.isfinite(affine).all() or not ((spacing >= lo) & (spacing <= hi)).all():
        raise BadFile("geometry", f"has voxels of {spacing.tolist()} mm; {lo} to {hi} mm are read; mend its header")
    if abs(np.linalg.det(affine[:3, :3] / spacing)) < 0.1:
        raise BadFile("geometry", "has axes that lie in one plane; mend the orientation in its header")
    axes = nibabel.io_orientation(affine)
    data = nibabel.apply_orientation(data, axes)
    return Scan(finite(data), tuple(float(spacing[np.flatnonzero(axes[:, 0] == axis)[0]]) for axis in range(3)))
