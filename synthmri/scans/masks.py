"""Masks of lesions: to which scan one belongs, and where it is on the scan's slices.

A mask has the name of its scan but for words that tell what both are: x_mask.tif beside x.tif, masks/1.png beside
images/1.png, labelsTr/A_001.nii.gz beside imagesTr/A_001_0000.nii.gz, consensus_gt.nii.gz in the folder of T1.nii.gz.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np

from synthmri.scans import kind
from synthmri.scans.contrast import contrast_of
from synthmri.scans.scan import Source

REASONS = ("mask", "label map")
_PARTS_OF_ALL = re.compile(  # of the head or of every brain, and so no lesion
    r"_([a-z]*(brain|head|skull|face|bet|tissue|air)[a-z]*mask|brain|head|skull|face|tissues?|deface|parc\w*?|dseg|"
    r"[a-z]*parc|aseg|ribbon|synthseg|wm|gm|csf|first\w*?|pveseg|mixeltype|vent\w*?|hippo\w*?)_"
)
_ROLE = re.compile(
    r"(image|img|scan|volume|picture|mask|label|segmentation|annotation|roi|lesion|tumou?r)s?\d*|msk|seg|segm|gt|truth|"
    r"ground|consensus|manual|expert|tr|ts"
)


def paired(sources: Iterable[Source], masks: dict[str, Path]) -> list[Source]:
    """The sources, each with the mask that belongs to it. masks: path under the root -> file."""
    known: dict[tuple[str, ...], Path] = {}
    for name, path in masks.items():
        if not _PARTS_OF_ALL.search(kind.words(kind.stem(PurePosixPath(name).name))):
            known.setdefault(_key(name), path)
    return [
        source if source.kind == "dicom" else replace(source, mask=known.get(_key(source.name))) for source in sources
    ]


def _key(name: str) -> tuple[str, ...]:
    """The words of a path, less those that tell what a file is."""
    path = PurePosixPath(name)
    channel = re.sub(r"_000\d$", "", kind.stem(path.name)) if ".nii" in path.name else kind.stem(path.name)  # nnU-Net
    told = [word for part in [*path.parts[:-1], channel] for word in kind.words(part).strip("_").split("_")]
    return tuple(word for word in told if word and not _ROLE.fullmatch(word) and not contrast_of(word))


def lesion(values: np.ndarray) -> np.ndarray:
    """bool, shaped as the values of a mask or a map of labels: where there is any; what JPEG left beside is none."""
    return values > 0.1 * values.max(initial=0)
