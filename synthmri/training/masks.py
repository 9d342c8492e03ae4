"""Learning to draw masks of lesions: crops that hold some, and the loss."""

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
