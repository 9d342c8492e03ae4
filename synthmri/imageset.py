"""ImageSet: the one data contract between stages, the same for real and generated slices.

A folder of three files, or four:

- `images.npy`    uint8, N x H x W, opened memory-mapped; 0 = black, 255 = white.
- `manifest.csv`  N rows; row i describes image i. Real slices: subject, source, contrast, plane, label, slice_mm,
                  depth_mm, split. Generated slices: model, seed, prompt; contrast, depth_mm and label are what
                  the prompt asks for. Empty cells mean "not known".
- `meta.json`     what made the set: parameters, pixel spacing in mm, orientation.
- `masks.npy`     where masks of lesions are known: as images.npy, 255 in a lesion.
"""

import json
import mmap
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from synthmri.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 (N, H, W); manifest: DataFrame of N rows, all text; meta: JSON-able dict; masks: as images, 255 in
    a lesion, or None."""

    images: np.ndarray
    manifest: pd.DataFrame
    meta: dict = field(default_factory=dict)
    masks: np.ndarray | None = None

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 3:
            raise UserError(
                f"an ImageSet takes uint8 images (N, H, W); these are {self.images.dtype} {self.images.shape}"
            )
        if len(self.images) != len(self.manifest):
            raise UserError(
                f"{len(self.images)} images but {len(self.manifest)} rows in the manifest; write both again"
            )
        if self.masks is not None and (self.masks.dtype != np.uint8 or self.masks.shape != self.images.shape):
            raise UserError(
                f"masks are uint8 as the images, {self.images.shape}; these are {self.masks.dtype} {self.masks.shape}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows) -> "ImageSet":
        """The images and rows of the given indices, in that order."""
        masks = None if self.masks is None else np.asarray(self.masks[rows])
        manifest = self.manifest.iloc[rows].reset_index(drop=True)
        return ImageSet(np.asarray(self.images[rows]), manifest, self.meta, masks)


PIECE = 256  # images at a time: 16 MiB at 256 x 256


def write(folder: Path, imageset: ImageSet) -> None:
    """Write the files into `folder` (made if absent). The same set gives the same bytes."""
    images = (piece for _, piece in pieces(imageset.images, PIECE))
    masks = None if imageset.masks is None else (piece for _, piece in pieces(imageset.masks, PIECE))
    write_pieces(folder, images, imageset.images.shape[1:], imageset.manifest, imageset.meta, masks)


def write_pieces(
    folder: Path, images: Iterable[np.ndarray], shape: tuple[int, int], manifest: pd.DataFrame, meta: dict,
    masks: Iterable[np.ndarray] | None = None,
) -> None:  # fmt: skip
    """The same of images that come piece by piece, uint8 (., H, W), of which one piece is in memory at a time.

    shape: (H, W). Raises UserError where the images are of another type or number than the rows of the manifest.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("images", images), ("masks", masks)):
        if part is None:
            (folder / f"{name}.npy").unlink(missing_ok=True)
            continue
        with growing(folder / f"{name}.npy", shape, np.uint8) as append:
            count = sum(append(piece) for piece in part)
        if count != len(manifest):
            raise UserError(f"{count} {name} but {len(manifest)} rows in the manifest; write both again")
    manifest.to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
    text = json.dumps(meta, indent=1, sort_keys=True, allow_nan=False)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


@contextmanager
def growing(path: Path, shape: tuple[int, ...], dtype: type) -> Iterator[Callable[[np.ndarray], int]]:
    """A .npy of (N, *shape) whose N is known at the end: what is yielded appends a piece and returns its rows.

    The bytes are those of np.save: its header leaves room for any N. Raises UserError for a piece of another type.
    """
    dtype, rows = np.dtype(dtype), 0

    def header() -> None:
        description = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, *shape)}
        np.lib.format.write_array_header_1_0(file, description)

    def append(piece: np.ndarray) -> int:
        nonlocal rows
        if piece.dtype != dtype or piece.shape[1:] != tuple(shape):
            raise UserError(f"{path.name} takes rows of {dtype} {shape}; this is {piece.dtype} {piece.shape}")
        file.write(np.ascontiguousarray(piece).data)
        rows += len(piece)
        return len(piece)

    with open(path, "wb") as file:
        header()
        yield append
        file.seek(0)
        header()


def pieces(array: np.ndarray, size: int, rows: np.ndarray | None = None) -> Iterator[tuple[int, np.ndarray]]:
    """`array`, or its `rows`, as copies of at most `size` rows, each with the number of its first.

    One copy is in memory at a time: the pages of a memory-mapped file, which would count as memory until another
    process wants it, are given back behind each.
    """
    for start in range(0, len(array) if rows is None else len(rows), size):
        part = slice(start, start + size)
        yield start, np.array(array[part]) if rows is None else np.asarray(array[rows[part]])  # a list copies
        release(array)


def rows(array: np.ndarray, which: np.ndarray) -> np.ndarray:
    """A copy of the rows of these numbers, in that order; of a memory-mapped file no more stays in memory."""
    copy = np.empty((len(which), *array.shape[1:]), array.dtype)
    for start, piece in pieces(array, PIECE, which):
        copy[start : start + len(piece)] = piece
    return copy


def evenly(count: int, most: int) -> np.ndarray:
    """At most `most` of the rows 0 .. count - 1, at even steps from the first to the last: int64, ascending."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(np.int64)


def release(array: np.ndarray) -> None:
    """Give back the pages in memory of a memory-mapped file; it stays open. Nothing for other arrays."""
    if isinstance(array, np.memmap) and hasattr(mmap, "MADV_DONTNEED"):
        array._mmap.madvise(mmap.MADV_DONTNEED)


def read(folder: Path) -> ImageSet:
    """Open an ImageSet; the images stay on disk until they are used.

    Raises UserError where a file is missing, is not what it should be, or the counts differ.
    """
    folder = Path(folder)
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        drawn = (folder / "masks.npy").is_file()
        masks = np.load(folder / "masks.npy", mmap_mode="r", allow_pickle=False) if drawn else None
        manifest = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        json.dumps(meta, allow_nan=False)  # JSON has no NaN, but Python's reader takes it
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no ImageSet: {Path(error.filename).name} is missing; run `dvc repro`") from None
    except Exception as error:  # on damaged files the parsers raise nearly anything
        raise UserError(f"{folder} is a damaged ImageSet ({error}); remove it and run `dvc repro`") from None
    # pandas takes a row that is too long for one with an index, and fills up one that is too short.
    ragged = not isinstance(manifest.index, pd.RangeIndex) or manifest.isna().any(axis=None)
    ragged |= not isinstance(masks, np.ndarray | None)
    if ragged or not isinstance(images, np.ndarray) or not isinstance(meta, dict) or not images.size:
        raise UserError(f"{folder} is a damaged ImageSet; remove it and run `dvc repro`")
    depths = pd.to_numeric(manifest.get("depth_mm", pd.Series(dtype=str)).replace("", "0"), errors="coerce")
    if not np.isfinite(depths).all():
        raise UserError(
            f"{folder}/manifest.csv: depth_mm of row {int(np.argmin(np.isfinite(depths)))} is no number; remove the "
            "folder and run `dvc repro`"
        )
    return ImageSet(images, manifest, meta, masks)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """The one 8-bit quantisation of the project: float in [0, 1] -> clip, round half to even -> uint8.

    Real and generated images both pass here once, so that no metric can see a difference in rounding.
    """
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
