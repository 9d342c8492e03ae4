"""Differentiable augmentation (Zhao 2020, arXiv 2006.10738) of real and generated images alike, for the two GANs.

Of the paper's policy "color, translation, cutout" the translation alone: with the cut-out, generators drew the holes,
and with the brightness heads came later.
"""

import torch
import torch.nn.functional as F

from synthmri.training import distributed

REACH = 8  # an image moves by up to 1/8 of its edge
BLACK = -1.0  # what comes in: the background of a slice


def augment(x: torch.Tensor, generator: torch.Generator, share: distributed.Share | None = None) -> torch.Tensor:
    """Each image moved by its own whole number of pixels, up and down, left and right.

    x: (B, 1, S, S) in [-1, 1]; gradients pass. share: which part of a batch x is, where it is not all of it.
    """
    size = x.shape[-1]
    share = share or distributed.Share(len(x), slice(None), 1.0)
    reach = size // REACH
    moves = torch.randint(-reach, reach + 1, (share.whole, 2), generator=generator)[share.rows].tolist()
    padded = F.pad(x, (reach,) * 4, value=BLACK)
    corners = zip(padded, moves, strict=True)
    return torch.stack(
        [image[:, reach + i : reach + i + size, reach + j : reach + j + size] for image, (i, j) in corners]
    )
