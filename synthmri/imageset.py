"""ImageSet: the one data contract between stages, the same for real and generated slices.

A folder of three files:

- `images.npy`    uint8, N x H x W, opened memory-mapped; 0 = black, 255 = white.
- `manifest.csv`  N rows; row i describes image i. Real slices: subject, source, contrast, plane, label, slice_mm,
                  depth_mm, split. Generated slices: model, seed, prompt, label (the prompt's). Empty
                  cells mean "not known".
- `meta.json`     what made the set: parameters, pixel spacing in mm, orientation.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from synthmri.errors import UserError


@dataclass(frozen=True)
class ImageSet:
    """images: uint8 (N, H, W); manifest: DataFrame of N rows, all text; meta: JSON-able dict."""

    images: np.ndarray
    manifest: pd.DataFrame
    meta: dict = field(default_factory=dict)

    def __post_init__(self):
        if self.images.dtype != np.uint8 or self.images.ndim != 3:
            raise UserError(
                f"an ImageSet takes uint8 images (N, H, W); these are {self.images.dtype} {self.images.shape}"
            )
        if len(self.images) != len(self.manifest):
            raise UserError(
                f"{len(self.images)} images but {len(self.manifest)} rows in the manifest; write both again"
            )

    def __len__(self) -> int:
        return len(self.images)

    def take(self, rows) -> "ImageSet":
        """The images and rows of the given indices, in that order."""
        return ImageSet(np.asarray(self.images[rows]), self.manifest.iloc[rows].reset_index(drop=True), self.meta)


def write(folder: Path, imageset: ImageSet) -> None:
    """Write the three files into `folder` (made if absent). The same set gives the same bytes."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "images.npy", np.ascontiguousarray(imageset.images))
    imageset.manifest.to_csv(folder / "manifest.csv", index=False, lineterminator="\n")
    text = json.dumps(imageset.meta, indent=1, sort_keys=True, allow_nan=False)
    (folder / "meta.json").write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> ImageSet:
    """Open an ImageSet; the images stay on disk until they are used.

    Raises UserError where a file is missing, is not what it should be, or the counts differ.
    """
    folder = Path(folder)
    try:
        images = np.load(folder / "images.npy", mmap_mode="r", allow_pickle=False)
        manifest = pd.read_csv(folder / "manifest.csv", dtype=str, keep_default_na=False)
        meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        json.dumps(meta, allow_nan=False)  # JSON has no NaN, but Python's reader takes it
    except FileNotFoundError as error:
        raise UserError(f"{folder} is no ImageSet: {Path(error.filename).name} is missing; run `dvc repro`") from None
    except Exception as error:  # on damaged files the parsers raise nearly anything
        raise UserError(f"{folder} is a damaged ImageSet ({error}); remove it and run `dvc repro`") from None
    # pandas takes a row that is too long for one with an index, and fills up one that is too short.
    ragged = not isinstance(manifest.index, pd.RangeIndex) or manifest.isna().any(axis=None)
    if ragged or not isinstance(images, np.ndarray) or not isinstance(meta, dict) or not images.size:
        raise UserError(f"{folder} is a damaged ImageSet; remove it and run `dvc repro`")
    return ImageSet(images, manifest, meta)


def to_uint8(images: np.ndarray) -> np.ndarray:
    """The one 8-bit quantisation of the project: float in [0, 1] -> clip, round half to even -> uint8.

    Real and generated images both pass here once, so that no metric can see a difference in rounding.
    """
    return np.rint(np.clip(images, 0.0, 1.0) * 255.0).astype(np.uint8)
