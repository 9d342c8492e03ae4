"""Smaller pictures of slices, and back: what is learnt from few pixels takes a fraction of the time."""

import numpy as np
import torch
import torch.nn.functional as F

from synthmri.imageset import PIECE, pieces


def shrunk(images: np.ndarray, px: int) -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, px, px), each pixel the mean of those that it covers."""
    out = np.empty((len(images), px, px), np.uint8)
    for first, piece in pieces(images, PIECE):
        x = F.interpolate(torch.from_numpy(piece)[:, None].float(), size=(px, px), mode="area")
        out[first : first + len(piece)] = x[:, 0].round().byte().numpy()
    return out


def enlarged(x: torch.Tensor, size: int) -> torch.Tensor:
    """(B, 1, S, S) -> (B, 1, size, size), by cubic splines, which may overshoot; as it is where S = size."""
    return x if x.shape[-1] == size else F.interpolate(x.float(), size=(size, size), mode="bicubic")
