"""Who looks like whom: slices of one person under two names, moved, turned or mirrored as they may be."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from scipy import ndimage

from synthmri import imageset

SIDE, RIM = 64, 3  # pixels that are compared, less those at the edge of the head, which is much the same in everybody
TURNS_DEG = (-12, -6, 0, 6, 12)
# Correlation of detail, the median over slices. Two visits of one person reach 0.63 to 0.88 (open-ms, 5 pairs) and a
# copy that is turned, moved, mirrored and brightened 0.87 to 0.95 (lgg-flair, 12); two people 0.48 (open-ms, FLAIR and
# T1w) and 0.40 (lgg-flair, 2,701 pairs) at most.
LEAST = 0.55
MOST = 1000  # people; the time grows with their square


def alike(
    images: np.ndarray, where: np.ndarray, people: Sequence[str], *, slices: int | None = None
) -> list[tuple[str, str, float]]:
    """Pairs of people half of whose slices are nearly the same, and how alike these are, the most alike first.

    images: uint8 (N, H, W), may be memory-mapped; where: M of its indices; people: their M names. Of each person up to
    `slices` are looked at (None: 24, or as many as keep memory below 150 MB), and a third of them in each turn,
    mirrored too. Nobody is looked at where there are more than MOST people.
    """
    people = np.asarray(people)
    names = [str(name) for name in sorted(set(people))]
    if len(names) > MOST:
        return []
    slices = slices or min(24, 6 * MOST // len(names))
    rows = [np.asarray(where)[people == name] for name in names]
    rows = [found[imageset.evenly(len(found), slices)] for found in rows]
    heads = [[_centred(image) for image in images[found]] for found in rows]
    imageset.release(images)
    seen = np.concatenate([_details(shown) for shown in heads])
    first = np.cumsum([0, *[len(found) for found in rows]])[:-1]
    pairs = {}
    for number, shown in enumerate(heads):
        some = [shown[index] for index in imageset.evenly(len(shown), max(1, slices // 3))]
        best = np.full((len(some), len(names)), -1.0)  # of each slice with each person
        for turn in TURNS_DEG:
            for mirrored in (False, True):
                values = _details(some, turn, mirrored) @ seen.T
                np.maximum(best, np.maximum.reduceat(values, first, axis=1), out=best)
        likeness = np.median(best, axis=0)
        for other in np.flatnonzero(likeness > LEAST):
            if other != number:
                pair = (names[min(number, other)], names[max(number, other)])
                pairs[pair] = max(pairs.get(pair, -1.0), float(likeness[other]))
    return sorted(((*pair, value) for pair, value in pairs.items()), key=lambda found: -found[2])


def _centred(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (H, W) -> the same small, uint8 (1.5 SIDE, 1.5 SIDE), and the middle of its head in pixels, (2,)."""
    small = np.asarray(Image.fromarray(np.asarray(image)).resize((3 * SIDE // 2,) * 2, Image.Resampling.BOX))
    head = small > max(10.0, 0.15 * float(np.percentile(small, 99)))
    middle = np.array(ndimage.center_of_mass(head)) if head.any() else np.array(small.shape) / 2
    return small, middle


def _details(heads: list[tuple[np.ndarray, np.ndarray]], turn_deg: float = 0, mirrored: bool = False) -> np.ndarray:
    """float32 (N, SIDE^2) of norm 1: each head turned about its middle, its detail alone, evened out."""
    cos, sin = 1.5 * np.cos(np.deg2rad(turn_deg)), 1.5 * np.sin(np.deg2rad(turn_deg))
    turn = np.array([[cos, -sin], [sin, cos]]) * ([1, -1] if mirrored else [1, 1])
    shown = np.stack(
        [
            ndimage.affine_transform(
                small, turn, middle - turn @ np.full(2, (SIDE - 1) / 2), (SIDE, SIDE), np.float32, order=1
            )
            for small, middle in heads
        ]
    )
    fine = shown - ndimage.gaussian_filter(shown, (0, 3, 3))
    fine /= np.sqrt(ndimage.gaussian_filter(fine * fine, (0, 3, 3))) + 4  # grey levels
    for image, detail in zip(shown, fine, strict=True):
        inside = ndimage.binary_fill_holes(image > max(10.0, 0.15 * float(image.max())))
        inside = ndimage.binary_erosion(inside, iterations=RIM)
        detail -= detail[inside].mean() if inside.any() else 0
        detail[~inside] = 0
        detail /= max(float(np.linalg.norm(detail)), 1e-6)
    return fine.reshape(len(fine), -1)
