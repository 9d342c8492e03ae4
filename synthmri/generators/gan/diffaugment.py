"""Differentiable augmentation (Zhao 2020, arXiv 2006.10738) of real and generated images alike, for the two GANs."""

import torch
import torch.nn.functional as F

from synthmri.training import distributed


def augment(x: torch.Tensor, generator: torch.Generator, share: distributed.Share | None = None) -> torch.Tensor:
    """Brightness, contrast, translation by up to 1/8 and a cut-out of 1/2 of the edge, each image its own.

    x: (B, 1, S, S), any range; gradients pass. The paper's policy "color, translation, cutout" without saturation,
    which grey images lack. share: which part of a batch x is, where it is not all of it.
    """
    size = x.shape[-1]
    share = share or distributed.Share(len(x), slice(None), 1.0)
    n, rows = share.whole, share.rows

    def uniform():
        return torch.rand(n, 1, 1, 1, generator=generator)[rows].to(x)

    x = x + (uniform() - 0.5)
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    x = (x - mean) * (uniform() + 0.5) + mean

    # By whole pixels: what comes in is zero, as in the paper's code.
    reach = size // 8
    moves = torch.randint(-reach, reach + 1, (n, 2), generator=generator)[rows].tolist()
    padded = F.pad(x, (reach,) * 4)
    corners = zip(padded, moves, strict=True)
    x = torch.stack([image[:, reach + i : reach + i + size, reach + j : reach + j + size] for image, (i, j) in corners])

    centre = torch.randint(0, size, (2, n, 1), generator=generator)[:, rows].to(x.device)
    near = (torch.arange(size, device=x.device)[None] - centre).abs() < size // 4  # (2, B, S)
    return x * ~(near[0][:, None, :, None] & near[1][:, None, None, :])
