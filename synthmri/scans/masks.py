"""Masks of lesions: to which scan one belongs, and where it is on the scan's slices.

A mask has the name of its scan but for words that tell what both are: x_mask.tif beside x.tif, masks/1.png beside
images/1.png, labelsTr/A_001.nii.gz beside imagesTr/A_001_0000.nii.gz, consensus_gt.nii.gz in the folder of T1.nii.gz.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
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
    r"((image|img|scan|volume|picture|mask|label|segmentation|annotation|roi|lesion|tumou?r)s?|msk|seg|segm|gt|truth|"
    r"ground|consensus|manual|expert|tr|ts)(?P<number>\d*)"
)
_CHANNEL = re.compile(r"_000\d(?=\.nii)", re.I)  # of nnU-Net; or the number of a person
SEVERAL = "several masks have its name, so that none is taken: leave one of them beside it"

Key = tuple[str, ...]


def paired(sources: Sequence[Source], masks: dict[str, Path]) -> list[Source]:
    """The sources, each with the mask that belongs to it; in doubt, and without, where several would.

    masks: path under the root -> file. Numbers tell scans apart, also behind a word such as image12; where the scan or
    the mask has none, as in anna/mask1.png beside anna/T1.png, they are of no matter.
    """
    named = [name for name in masks if not _PARTS_OF_ALL.search(kind.words(kind.stem(PurePosixPath(name).name)))]
    exact, loose = defaultdict(list), defaultdict(list)
    for name in named:
        exact[_key(name)].append(masks[name])
        loose[_key(name, numbered=False)].append(masks[name])
    below = defaultdict(set)  # loose key -> the keys of the sources that have it
    for source in sources:
        below[_key(source.name, numbered=False)].add(_key(source.name))

    def of(source: Source) -> list[Path]:
        key, less = _key(source.name), _key(source.name, numbered=False)
        return (
            exact.get(key)
            or exact.get(_key(_CHANNEL.sub("", source.name)))
            or (loose if key == less else exact if len(below[less]) == 1 else {}).get(less, [])
        )

    found = []
    for source in sources:
        fitting = [] if source.kind == "dicom" else of(source)
        doubts = (*source.doubts, SEVERAL) if len(fitting) > 1 else source.doubts
        found.append(replace(source, mask=fitting[0] if len(fitting) == 1 else None, doubts=doubts))
    return found


def _key(name: str, *, numbered: bool = True) -> Key:
    """The words of a path in any script, less those that tell what a file is; numbered: of these the numbers stay."""
    path = PurePosixPath(name)
    key = []
    for part in [*path.parts[:-1], kind.stem(path.name)]:
        apart = re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", part)
        for word in re.split(r"[\W_]+", apart.casefold()):
            if role := _ROLE.fullmatch(word):
                word = role["number"] if numbered else ""
            if word and not contrast_of(word):
                key.append(word)
    return tuple(key)


def lesion(values: np.ndarray) -> np.ndarray:
    """bool, shaped as the values of a mask or a map of labels: where there is any; what JPEG left beside is none."""
    return values > 0.1 * values.max(initial=0)
