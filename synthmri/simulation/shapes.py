"""The drawn parts of a head: ellipsoids of one tissue each, painted one over the other.

Each line of the tables is (tissue, centre mm, radii mm, turn about z, turn about x in degrees) of the atlas; a part
with x > 1 is painted on both sides. Sizes and places follow anatomical atlases, and are meant for the eye alone.
"""

from typing import NamedTuple

import torch

from synthmri.simulation.atlas import sample_tile
from synthmri.simulation.tissues import TISSUES

# Outside the brain, from back to front. "cells" are air cells in bone, "bundles" are muscles with fat between.
OUTER = (
    # neck
    ("bundles", (26, -74, -104), (22, 17, 52), 0, 0), ("muscle", (13, -66, -110), (11, 12, 46), 0, 0),
    ("bundles", (14, -84, -100), (13, 8, 46), 0, 0), ("muscle", (47, -30, -112), (9, 13, 48), 0, 12),
    ("muscle", (9, -9, -112), (6, 5, 40), 0, 0), ("bone", (0, -22, -130), (11, 10, 58), 0, 0),
    ("marrow", (0, -22, -88), (5.5, 6, 13), 0, 0), ("marrow", (0, -21, -112), (9.5, 8.5, 7.5), 0, 0),
    ("marrow", (0, -21, -130), (9.5, 8.5, 7.5), 0, 0), ("marrow", (0, -21, -148), (9.5, 8.5, 7.5), 0, 0),
    ("marrow", (17, -34, -84), (7, 8, 8), 0, 0), ("marrow", (16, -34, -104), (5, 7, 8), 0, 0),
    ("marrow", (0, -80, -108), (3, 12, 5), 0, 20), ("marrow", (0, -80, -128), (3, 12, 5), 0, 20),
    ("vein", (26, -14, -112), (5, 6, 46), 0, 0), ("artery", (22, -6, -112), (3.2, 3.2, 44), 0, 0),
    ("csf", (0, -45, -126), (10, 8.5, 66), 0, 0), ("wm", (0, -45, -126), (6.5, 5, 66), 0, 0),
    # jaw, muscles of chewing, mouth
    ("gland", (55, -8, -88), (9, 14, 23), 10, 0), ("fat", (40, 42, -80), (9, 15, 18), 0, 0),
    ("muscle", (54, 19, -92), (6.5, 14, 25), -12, 0), ("bundles", (59, 22, -38), (6.5, 23, 27), -12, 0),
    ("bundles", (35, 15, -72), (9, 16, 10), -30, 0), ("muscle", (36, 8, -96), (6, 11, 19), -15, 0),
    ("bone", (46, 8, -95), (5, 15, 29), -12, 0), ("marrow", (46, 8, -95), (2.8, 12.5, 26.5), -12, 0),
    ("bone", (29, 50, -122), (6.5, 36, 11), 24, 0), ("marrow", (29, 50, -122), (4, 33, 8), 24, 0),
    ("bone", (0, 78, -125), (15, 7, 11), 0, 0), ("marrow", (0, 78, -125), (12, 4.5, 8), 0, 0),
    ("bundles", (0, 46, -106), (25, 33, 18), 0, -10), ("muscle", (0, 20, -92), (14, 12, 4), 0, 25),
    ("bone", (0, 60, -86), (27, 26, 8), 0, 0), ("marrow", (0, 60, -86), (24, 23, 5.5), 0, 0),
    ("bone", (12, 80, -98), (13, 7, 9), 30, 0), ("air", (0, 56, -92.5), (14, 22, 1.4), 0, -6),
    # cheekbone, skull base, ear
    ("bone", (62, 30, -56), (3, 26, 4.5), -12, 0), ("marrow", (62, 30, -56), (1.6, 24, 3), -12, 0),
    ("bone", (46, 56, -58), (10, 8, 10), -40, 0), ("marrow", (46, 56, -58), (8, 6, 8), -40, 0),
    ("bone", (45, 50, -38), (3, 16, 14), -35, 0), ("marrow", (45, 50, -38), (1.6, 14, 12), -35, 0),
    ("bone", (0, -9, -49), (15, 8, 22), 0, -32), ("marrow", (0, -9, -49), (13, 6.3, 20), 0, -32),
    ("bone", (33, -22, -47), (24, 9, 9), 38, 0), ("cells", (56, -38, -52), (13, 15, 20), 0, 0),
    ("csf", (24, -30, -45), (9, 2, 2), 20, 0), ("csf", (37, -27, -45), (3.5, 3.5, 3), 0, 0),
    ("air", (51, -22, -46), (4, 5, 6), 0, 0), ("air", (66, -21, -48), (14, 2.7, 2.7), 0, 0),
    ("vein", (47, -46, -52), (4, 5, 12), 0, 15), ("artery", (22, -4, -48), (3, 3, 14), 0, 0),
    # nose and sinuses: bone, mucosa, air
    ("bone", (0, 54, -66), (17, 38, 24), 0, 0), ("mucosa", (0, 54, -67), (15.5, 39, 21), 0, 0),
    ("air", (6.5, 56, -70), (5, 38, 16), 0, 0), ("air", (5, 60, -54), (3.5, 24, 8), 0, 0),
    ("mucosa", (6.5, 56, -78), (3.4, 24, 5), 0, 0), ("mucosa", (5, 52, -65), (2.1, 18, 5), 0, 0),
    ("bone", (0, 60, -70), (0.8, 26, 17), 0, 0),
    ("bone", (9, 50, -42), (8, 22, 11), 0, 0), ("cells", (8, 50, -42), (7, 21, 10), 0, 0),
    ("bone", (8, 20, -47), (10, 13, 11), 0, 0), ("mucosa", (7.5, 20, -47), (8.5, 11.5, 9.5), 0, 0),
    ("air", (7.5, 20, -47), (7.7, 10.5, 8.8), 0, 0),
    ("bone", (30, 46, -70), (15.5, 18.5, 18), 12, 0), ("mucosa", (30, 46, -70), (14.2, 17.2, 16.8), 12, 0),
    ("air", (30, 46, -69.5), (13, 16, 15.5), 12, 0),
    ("air", (8, 76, -23), (9, 5.5, 9), -15, 0), ("mucosa", (0, 19, -76), (14, 11, 13), 0, 0),
    ("air", (0, 20, -77), (11, 8, 12), 0, 0), ("mucosa", (0, 8, -112), (13, 8, 28), 0, 0),
    ("air", (0, 9, -112), (9, 5, 26), 0, 0),
    # orbits
    ("fat", (30, 48, -38), (17, 27, 17), 20, 0), ("muscle", (19, 48, -38), (1.7, 17, 4.2), 4, 0),
    ("muscle", (39, 47, -38), (1.7, 17, 4.2), 34, 0), ("muscle", (29, 48, -27.5), (4.2, 17, 1.7), 20, -8),
    ("muscle", (29, 48, -48), (4.2, 17, 1.7), 20, 8), ("csf", (25, 40, -37), (3.3, 17, 3.3), 22, 0),
    ("wm", (25, 40, -37), (2, 17, 2), 22, 0), ("gland", (44, 63, -30), (3.5, 6, 6), -30, 0),
    ("skin", (33, 73, -38), (16, 4, 11), -12, 0),
    ("dura", (33, 62, -38), (13, 13, 13), 0, 0), ("vitreous", (33, 62, -38), (12, 12, 12), 0, 0),
    ("lens", (34, 70.5, -38), (4.8, 2.1, 4.8), -8, 0),
)  # fmt: skip

# Ears, which alone stand out of the skin.
EARS = (
    ("skin", (80, -27, -42), (4, 16, 27), 22, 8), ("fat", (78, -22, -63), (4, 7, 8), 22, 0),
    ("air", (84.5, -24, -38), (4, 10, 17), 22, 8), ("skin", (81.5, -24, -36), (2, 5, 13), 25, 20),
    ("air", (80, -20, -47), (5, 5, 6), 0, 0),
)  # fmt: skip

# Within the skull, painted over the fluid alone (vessels, glands) or over everything ("!").
INNER = (
    ("artery", (13, -1, -37), (2.4, 8, 2.6), 0, 0), ("vein", (13, 1, -38), (6, 11, 7), 0, 0),
    ("artery", (13, -1, -37), (2.4, 8, 2.6), 0, 0), ("artery", (0, -17, -36), (1.8, 1.8, 16), 0, -18),
    ("artery", (23, 1, -19), (13, 1.5, 1.5), -10, 0), ("artery", (2, 26, -8), (1.4, 14, 1.5), 0, 30),
    ("artery", (2, 36, 10), (1.4, 1.6, 14), 0, -15), ("artery", (14, -16, -22), (11, 6, 1.4), 30, 0),
    ("gland", (0, 4, -37), (7, 5, 4.5), 0, 0), ("gland", (0, 1, -29), (1.2, 1.2, 7), 0, 0),
    ("mucosa", (22, -42, 10), (3.5, 8, 5), 20, 0), ("mucosa", (9, -14, 20), (2, 15, 2), 15, 0),
    ("gland", (0, -29, 2), (2.8, 4, 3), 0, 0),
    ("vein", (4, -40, 6), (1.6, 9, 1.6), 0, -15), ("vein", (0, -73, -2), (2, 27, 2.4), 0, 18),
)  # fmt: skip
CELLS, BUNDLES = len(TISSUES), len(TISSUES) + 1  # rows of mixtures, resolved by `mixtures`
_ROWS = {name: i for i, name in enumerate((*TISSUES, "cells", "bundles"))}


class Parts(NamedTuple):
    """K ellipsoids: rows of tissues, centres (K, 3) mm, reach (K, 3) mm of their boxes, and matrices (K, 3, 3) that
    make each the unit ball."""

    rows: list[int]
    centres: torch.Tensor
    reach: torch.Tensor
    matrices: torch.Tensor

    def to(self, device) -> "Parts":
        """With all its tensors on a device."""
        return Parts(self.rows, *(value.to(device) for value in self[1:]))

    def grown(self, factor: float) -> "Parts":
        """Each about its own centre, `factor` times as wide."""
        return self._replace(reach=self.reach * factor, matrices=self.matrices / factor)


def turn(about_z_deg: torch.Tensor, about_x_deg: torch.Tensor) -> torch.Tensor:
    """(K, 3, 3) rotations, first about x, then about z."""
    a, b = torch.deg2rad(about_z_deg), torch.deg2rad(about_x_deg)
    one, zero = torch.ones_like(a), torch.zeros_like(a)
    rows = [a.cos(), -a.sin(), zero, a.sin(), a.cos(), zero, zero, zero, one]
    about_z = torch.stack(rows, -1).reshape(-1, 3, 3)
    rows = [one, zero, zero, zero, b.cos(), -b.sin(), zero, b.sin(), b.cos()]
    return about_z @ torch.stack(rows, -1).reshape(-1, 3, 3)


def ellipsoids(rows: list[int], centres, radii, turns) -> Parts:
    """Parts from centres and radii (K, 3) mm and rotations (K, 3, 3)."""
    reach = (turns * radii[:, None]).square().sum(-1).sqrt() + 1.5
    return Parts(rows, centres, reach, turns.transpose(1, 2) / radii[:, :, None])


def draw(table: tuple, generator: torch.Generator) -> Parts:
    """The parts of a table as one person has them: moved, stretched and turned a little, left and right apart."""
    rows, numbers = [], []
    for name, centre, radii, z_deg, x_deg in table:
        for side in (1, -1) if centre[0] > 1 else (1,):
            rows.append(_ROWS[name])
            numbers.append((side * centre[0], *centre[1:], *radii, side * z_deg, x_deg))
    values = torch.tensor(numbers, dtype=torch.float32)
    n = len(values)
    # Neighbours move together by the deformation; what is left to each part is small, so that layers stay in order.
    centres = values[:, :3] + 0.5 * torch.randn(n, 3, generator=generator)
    radii = values[:, 3:6] * torch.exp(0.05 * torch.randn(n, 3, generator=generator))
    angles = values[:, 6:] + 3.0 * torch.randn(n, 2, generator=generator)
    return ellipsoids(rows, centres, radii, turn(*angles.unbind(1)))


def cover(parts: Parts, k: int, at: torch.Tensor, softness_mm: float = 0.35) -> tuple[torch.Tensor, torch.Tensor]:
    """Where part k is, of points (3, P) mm: their numbers, and how far each lies in it, 0 to 1.

    The distance to the surface is that of the unit ball over its slope: exact at the surface to first order.
    """
    (x, y, z), (a, b, c) = parts.centres[k].tolist(), parts.reach[k].tolist()
    box = ((at[0] - x).abs_() < a) & ((at[1] - y).abs_() < b) & ((at[2] - z).abs_() < c)
    near = box.nonzero()[:, 0]
    unit = parts.matrices[k] @ (at[:, near] - parts.centres[k, :, None]) + 1e-4  # no slope is 0
    ball = unit.square().sum(0).sqrt()
    slope = (parts.matrices[k].T @ unit).square().sum(0).sqrt()
    return near, torch.sigmoid(ball * (1 - ball) / slope / softness_mm)


def paint(parts: Parts, at: torch.Tensor, room: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
    """Add to `out` (rows, P) what each part takes of the `room` (P,) at (P, 3), the last first; returns what is left.

    A point that is full is full: parts behind it are not seen, so that the order of the table is that of a painter.
    """
    room, at = room.clone(), at.T.contiguous()
    low, high = at.amin(1), at.amax(1)
    meets = ((parts.centres + parts.reach > low) & (parts.centres - parts.reach < high)).all(1)
    for k in reversed(meets.nonzero()[:, 0].tolist()):
        near, inside = cover(parts, k, at)
        taken = room[near] * inside
        out[parts.rows[k]].index_add_(0, near, taken)
        room.index_add_(0, near, taken, alpha=-1)
    return room


def mixtures(out: torch.Tensor, noise: torch.Tensor, at: torch.Tensor, offset: torch.Tensor) -> torch.Tensor:
    """Resolve cells and bundles of (len(TISSUES) + 2, P) by fine noise: walls of bone, septa of fat along the neck."""
    air, bone, mucosa, muscle, fat = (TISSUES.index(t) for t in ("air", "bone", "mucosa", "muscle", "fat"))
    where = (out[CELLS] > 0.01).nonzero()[:, 0]
    if len(where):
        cells = out[CELLS, where]
        wall = torch.sigmoid((0.5 - sample_tile(noise, at[where] / 1.9 + offset)[0].abs()) * 6)
        out[air, where] += cells * (1 - wall)
        out[bone, where] += cells * wall * 0.45
        out[mucosa, where] += cells * wall * 0.55
    where = (out[BUNDLES] > 0.01).nonzero()[:, 0]
    if len(where):
        bundles = out[BUNDLES, where]
        along = sample_tile(noise, at[where] / at.new_tensor([3, 4, 16]) + offset)[1]
        septum = 0.75 * torch.sigmoid((0.2 - along.abs()) * 9)
        out[muscle, where] += bundles * (1 - septum)
        out[fat, where] += bundles * septum
    return out[: len(TISSUES)]
