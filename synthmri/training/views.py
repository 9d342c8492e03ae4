"""Further views of slices, as augmentation: mild enough that a model which learns from them draws no odd heads.

The head is moved, turned, stretched and bent a little, and its grey levels are changed as another scan of it would.
"""

import math

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from synthmri.imageset import to_uint8

SHIFT, TURN_DEG, STRETCH = 0.015, 3.0, 0.04  # at most: of the edge; to either side; along each axis
BEND, BENDS = 0.006, 5  # standard deviation of a smooth displacement, of the edge, and its nodes along an edge
GAIN, GAMMA = 0.06, 0.08  # at most


def mirrors(manifest: pd.DataFrame) -> np.ndarray:
    """bool (N,): which slices still are slices of a head when they are mirrored left to right.

    Not sagittal ones, whose noses would point either way. Of pictures of an unknown plane nobody knows: they are.
    """
    return (manifest["plane"] != "sagittal").to_numpy(bool)


def mirrored(images: np.ndarray, which: np.ndarray) -> np.ndarray:
    """A copy of (N, H, W) in which those of `which`, bool (N,), are mirrored left to right."""
    return np.where(which[:, None, None], images[:, :, ::-1], images)


def further(
    images: np.ndarray, generator: torch.Generator, masks: np.ndarray | None = None, mirrors: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray | None]:
    """uint8 (N, H, W) -> a view of each, uint8 (N, H, W), and of their masks.

    Half of them, or of `mirrors`, bool (N,), are mirrored left to right.
    """
    n, height, width = images.shape

    def uniform(*shape: int) -> torch.Tensor:  # in [-1, 1]
        return 2 * torch.rand(n, *shape, generator=generator) - 1

    angle = uniform() * math.radians(TURN_DEG)
    scale = 1 + STRETCH * uniform(2)
    turned = uniform() < 0
    mirror = torch.where(turned if mirrors is None else turned & torch.from_numpy(mirrors), -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    turn = torch.stack([torch.stack([cos, -sin], 1), torch.stack([sin, cos], 1)], 1) * scale[:, None]
    turn[:, :, 0] *= mirror[:, None]
    moved = torch.cat([turn, 2 * SHIFT * uniform(2)[..., None]], dim=2)
    grid = F.affine_grid(moved, (n, 1, height, width), align_corners=False)
    nodes = 2 * BEND * torch.randn(n, 2, BENDS, BENDS, generator=generator)
    grid = grid + F.interpolate(nodes, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    grey = torch.from_numpy(np.array(images)).float()[:, None] / 255
    seen = F.grid_sample(grey, grid, mode="bicubic", align_corners=False)[:, 0].clamp(0, 1)
    gain, gamma = 1 + GAIN * uniform(1, 1), torch.exp(GAMMA * uniform(1, 1))
    if masks is not None:
        inside = torch.from_numpy((np.asarray(masks) > 0).astype(np.float32))[:, None]
        masks = 255 * (F.grid_sample(inside, grid, align_corners=False)[:, 0] > 0.5).numpy().astype(np.uint8)
    return to_uint8((gain * seen**gamma).numpy()), masks
