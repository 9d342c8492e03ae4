"""What the shield compares with, read from where `dvc repro` has it."""

import sys
from pathlib import Path

from stages import _files
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import shield
from synthmri.registry import lineage

SLICES, FEATURES = Path("data/slices"), Path("data/features")
LOCK = Path("dvc.lock")


def check(model: Path) -> None:
    """Raise UserError where a model of `dvc repro` was not trained on the slices that lie here, as dvc.lock tells.

    So no slice of another person's model is said to be compared with what that was trained on.
    """
    if not LOCK.is_file():
        print(f"there is no {LOCK}: nobody knows whether {model} was trained on {SLICES}/train", file=sys.stderr)
        return
    with lineage.opened(Path.cwd()) as repo:
        try:
            lineage.check(repo, [model, SLICES / "train", SLICES / "val"])
        except UserError as error:
            raise UserError(
                f"the shield cannot know what {model} was trained on: {error}; or use --no-shield"
            ) from None


def known(slices: Path = SLICES, features: Path = FEATURES, *, size: int | None = None) -> shield.Known:
    """From the ImageSets train and val and their features.

    size: edge of what is drawn, px. Raises UserError where the slices are missing, or of another size.
    """
    train, val = (imageset.read(slices / name) for name in ("train", "val"))
    if size is not None and train.images.shape[1:] != (size, size):
        raise UserError(
            f"the model draws {size} x {size} px and {slices}/train holds {train.images.shape[1]} x "
            f"{train.images.shape[2]}: it was trained on others; --no-shield draws without comparing"
        )
    theirs = [
        _files.read_features(features / name, len(found))[shield.JUDGE]
        for name, found in (("train", train), ("val", val))
    ]
    return shield.known(train.images, val.images, *theirs)
