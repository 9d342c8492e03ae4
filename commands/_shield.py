"""What the shield compares with, read from where `dvc repro` has it."""

from pathlib import Path

from stages import _files
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import shield

SLICES, FEATURES = Path("data/slices"), Path("data/features")


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
