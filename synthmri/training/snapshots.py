"""How a model comes on: images of the same seeds at even distances of its training, kept until the training is done."""

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import Field

from synthmri.errors import UserError
from synthmri.params import Section


class Progression(Section):
    """Section `progression`."""

    n: int = Field(ge=2, le=10_000)
    points: int = Field(ge=1, le=1000)
    baseline_points: int = Field(ge=1, le=1000)


class Verdict(NamedTuple):
    """On the weights that a snapshot is of: whether they are the best so far, and whether no better ones will come."""

    best: bool
    stop: bool


class Store:
    """Sets of images by number in a folder, so that a training that was killed finds what it drew before."""

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, point: int, images: np.ndarray) -> None:
        """Keep uint8 (N, H, W). Raises UserError where the disk takes no more."""
        try:
            part = self.folder / f".{point}.npy.part"
            with open(part, "wb") as file:
                np.save(file, images)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.folder / f"{point}.npy")
        except OSError as error:
            raise UserError(
                f"{self.folder} cannot be written ({error.strerror or error}); make room on its disk, or give yourself "
                "the right to write there, then run it again: it goes on from the last checkpoint"
            ) from None

    def get(self, point: int) -> np.ndarray:
        """What was put there: uint8 (N, H, W). Raises UserError where it is missing or damaged."""
        return self.stack(point + 1)[point]

    def stack(self, count: int) -> np.ndarray:
        """Those of 0 .. count - 1: uint8 (count, N, H, W). Raises UserError where one is missing or damaged."""
        try:
            return np.stack([np.load(self.folder / f"{point}.npy") for point in range(count)])
        except (OSError, ValueError) as error:
            raise UserError(
                f"{self.folder} has lost images of a training that was interrupted ({error}); remove "
                f"{self.folder.parent}, with its checkpoint, and the training starts anew"
            ) from None


def epochs_shown(epochs: int, points: int) -> list[int]:
    """Epochs done when images are drawn: 0, the last, and at even distances between; every one where they fit."""
    return sorted({round(epochs * k / min(points, max(epochs, 1))) for k in range(min(points, max(epochs, 1)) + 1)})
