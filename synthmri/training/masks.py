"""Learning lesions from their masks: to draw masks, and to heed the places of lesions while denoising."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F

from synthmri.imageset import PIECE, pieces
from synthmri.training import distributed


def marked(masks: np.ndarray) -> np.ndarray:
    """The numbers of those of uint8 (N, H, W) that are not empty: int64, ascending."""
    return np.flatnonzero(np.concatenate([piece.any(axis=(1, 2)) for _, piece in pieces(masks, PIECE)]))


def crops(
    parts: list[np.ndarray], count: int, size: int, generator: torch.Generator, marked: np.ndarray | None = None
) -> list[np.ndarray]:
    """uint8 (count, size, size) from random places of random images, half of them mirrored left to right.

    parts: uint8 (N, H, W) each, cut alike: images and, where there are any, their masks. Of slices that are `marked`
    each fourth crop holds a pixel of a lesion: most of a slice has none, and a network would long learn to draw none.
    """
    number, height, width = parts[0].shape

    def draw(below: int) -> list[int]:
        return torch.randint(below, (count,), generator=generator).tolist()

    places = list(zip(draw(number), draw(height - size + 1), draw(width - size + 1), draw(2), strict=True))
    if marked is not None and len(marked):
        for k, (which, at, within) in enumerate(zip(draw(len(marked)), draw(2**31), draw(size * size), strict=True)):
            if k % 4 == 0:
                lesion = np.argwhere(parts[1][marked[which]])
                row, column = lesion[at % len(lesion)] - divmod(within, size)
                corner = int(np.clip(row, 0, height - size)), int(np.clip(column, 0, width - size))
                places[k] = int(marked[which]), *corner, places[k][3]
    return [
        np.stack(
            [
                part[i, top : top + size, left : left + size][:, :: -1 if mirrored else 1]
                for i, top, left, mirrored in places
            ]
        )
        for part in parts
    ]


def loss(logits: torch.Tensor, inside: torch.Tensor) -> torch.Tensor:
    """Cross-entropy plus soft Dice (Milletari 2016, arXiv 1606.04797) of masks (B, H, W).

    inside: 1 in a lesion, else 0. Dice is of the whole batch, since many slices have no lesion; so it is where several
    processes have a share each.
    """
    found = logits.sigmoid()
    both, either = distributed.summed(torch.stack([(found * inside).sum(), (found + inside).sum()]))
    overlap = (2 * both + 1) / (either + 1)
    return F.binary_cross_entropy_with_logits(logits, inside) + 1 - overlap


MORE = 8.0  # at most: how much more an error counts in a lesion than elsewhere
RAISED = 0.1  # at most: by how much that raises the weight of all places together; tumours are large
NEAR = 8  # slices of about the same level


def blocks(masks: np.ndarray, size: int) -> np.ndarray:
    """uint8 (N, H, W) -> bool (N, size, size): whether each block of pixels, a place of a latent, holds a lesion."""
    n, height, width = masks.shape
    return masks.reshape(n, size, height // size, size, width // size).any(axis=(2, 4))


def emphasis(lesions: np.ndarray, depth_mm: np.ndarray) -> Callable:
    """Where the loss of a denoiser counts more: in lesions, which are small and few, so that it hardly learns them.

    In a slice without any, those of another of about the same level show where: there it learns to draw none. Else it
    would learn that lesions are more frequent than they are, and not what tells the two kinds of slices apart.

    lesions: bool (N, V, h, w) of V views, not all of them empty; depth_mm: (N,), nan where unknown: neighbours in the
    set then stand for slices of the same level. Returns a function of slices (B,), views (B,) and a generator: float32
    (B, 1, h, w), 1 and more.
    """
    depth = np.where(np.isnan(depth_mm), np.linspace(0, 1, len(depth_mm)), depth_mm)
    marked = np.flatnonzero(lesions[:, 0].any(axis=(1, 2)))
    marked = marked[np.argsort(depth[marked], kind="stable")]
    window = np.arange(min(NEAR, len(marked)))
    first = np.searchsorted(depth[marked], depth) - len(window) // 2
    near = marked[first.clip(0, len(marked) - len(window))[:, None] + window]
    near[marked] = marked[:, None]
    more = min(MORE, RAISED / float(lesions.mean(axis=(1, 2, 3))[near].mean()))
    places, near = torch.from_numpy(lesions), torch.from_numpy(near)

    def of(rows: torch.Tensor, view: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        pick = torch.randint(near.shape[1], (len(rows),), generator=generator)
        return 1 + more * places[near[rows, pick], view][:, None].float()

    return of
