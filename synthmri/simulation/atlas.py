"""The maps that every head is made from: the ICBM152 average brain, distances to drawn surfaces, and periodic noise.

Nothing here has seen a patient: the anatomy is the ICBM152 2009 average of healthy adults (Fonov 2011), which comes
with nilearn, and everything around the brain is drawn.

World coordinates are millimetres in MNI space and RAS+: x grows to the right, y to the front, z to the top.
"""

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F

BOX_MM = ((-111.0, 111.0), (-147.0, 129.0), (-174.0, 126.0))  # x, y, z: room for scalp, nose and neck
GRID_MM = 3.0  # spacing of the distances
TILE = 64  # cells of the periodic noise along each axis
FOLD_WAVE = 8.0  # cells from one sulcus to the next but one, in the noise that folds the cortex

# What lies below the skull and in front of it: ellipsoids (centre and radii in mm) whose smooth union is the face.
_FACE = (
    ((0, -12, -46), (70, 84, 44)),  # skull base
    ((0, 38, -66), (60, 48, 46)),  # middle of the face
    ((-42, 50, -62), (23, 27, 28)), ((42, 50, -62), (23, 27, 28)),  # cheeks
    ((0, 66, -26), (52, 22, 16)),  # brow
    ((0, 92, -58), (9, 13, 26)), ((0, 100, -76), (14, 14, 11)),  # nose
    ((0, 44, -108), (52, 48, 34)), ((0, 78, -126), (24, 17, 18)),  # jaw and chin
    ((0, 92, -101), (25, 10, 13)),  # lips
    ((0, -36, -160), (60, 62, 120)),  # neck
)  # fmt: skip


@dataclass(frozen=True)
class Atlas:
    """Maps (1, C, Z, Y, X) float32.

    tissues: grey and white matter probability over `tissues_box`, 1 mm.
    outside: signed distances (mm, negative inside) to the inner skull and to the skin of the face; over BOX_MM.
    inside: depth (mm) below the smooth surface of the hemispheres, and its outward normal; over BOX_MM.
    ventricles: signed distance (mm) to the ventricles, and the normal of their wall; over BOX_MM.
    noise: four channels of smooth noise, unit variance, correlated over a cell; periodic, TILE cells and one more.
    folds: distance (cells) to the sheets along which the cortex folds, and noise for their depth; as `noise`.
    white_sites, rim_sites, hull_sites: (M, 3) mm, places in white matter near the ventricles, in white matter near
    the cortex, and at the inner skull over the hemispheres.
    """

    tissues: torch.Tensor
    tissues_box: tuple
    outside: torch.Tensor
    inside: torch.Tensor
    ventricles: torch.Tensor
    noise: torch.Tensor
    folds: torch.Tensor
    white_sites: torch.Tensor
    rim_sites: torch.Tensor
    hull_sites: torch.Tensor

    def to(self, device) -> "Atlas":
        """With all its tensors on a device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return Atlas(**{k: v.to(device) if isinstance(v, torch.Tensor) else v for k, v in values.items()})


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The ICBM152 2009 maps inside nilearn, and what is worked out from them once; the same bytes each time."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from scipy import ndimage

    gm_image, wm_image = load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1)
    gm, wm = (np.clip(image.get_fdata(dtype=np.float32), 0, 1) for image in (gm_image, wm_image))
    origin = gm_image.affine[:3, 3]
    box = tuple((float(o), float(o + n - 1)) for o, n in zip(origin, gm.shape, strict=True))

    axes = [np.arange(low, high + 1, GRID_MM, dtype=np.float32) for low, high in BOX_MM]
    index = np.meshgrid(*[axis - o for axis, o in zip(axes, origin, strict=True)], indexing="ij")
    x, y, z = np.meshgrid(*axes, indexing="ij", sparse=True)
    brain = ndimage.map_coordinates(ndimage.gaussian_filter(gm + wm, 1.2), index, order=1, mode="constant")
    white = ndimage.map_coordinates(wm, index, order=1, mode="constant")
    brain = ndimage.binary_fill_holes(brain > 0.3)

    # Closing spans sulci and cisterns, as the inner skull does; at its base it follows the brain more closely. An
    # ellipsoid rounds it where it would be flat between the poles of the hemispheres.
    rounded = (x / 66) ** 2 + ((y + 17) / 88) ** 2 + ((z - 4) / 75) ** 2 < 1
    vault = _closed(brain, 14.0, shrink_mm=2.0) | rounded
    inside = np.where(z > -14, vault, _closed(brain, 4.0, shrink_mm=1.0))
    skull = ndimage.gaussian_filter(_signed_distance(inside), 1.0)

    # Each hemisphere by itself, so that the cortex folds along the fissure between them too; the atlas is symmetric.
    above = z > tentorium_mm(x, y) + 2
    stem = (np.abs(x) < 22) & (y < 0) & (y > -48) & (z < 4)
    left = ndimage.binary_opening(brain & above & ~stem & (x < -1))
    hull = _signed_distance(_closed(left, 8.0))
    hull = np.minimum(hull, hull[::-1])
    hull = ndimage.gaussian_filter(hull, 0.7)
    normal = _normal(ndimage.gaussian_filter(hull, 1.3))

    deep = (skull < -18) & (np.abs(x) < 40) & (y > -75) & (y < 45) & (z > -10) & (z < 40)
    matter = ndimage.map_coordinates(gm + wm, index, order=1, mode="constant")
    labels, count = ndimage.label(deep & (matter < 0.5))
    sizes = ndimage.sum_labels(labels > 0, labels, range(1, count + 1)) * GRID_MM**3
    ventricle = np.isin(labels, 1 + np.flatnonzero(sizes > 400))  # mm3
    vent = ndimage.gaussian_filter(_signed_distance(ventricle), 0.7)
    wall = _normal(ndimage.gaussian_filter(vent, 1.0))

    def places(mask):
        found = np.argwhere(mask)
        return torch.from_numpy(np.stack([axes[i][found[:, i]] for i in range(3)], axis=1))

    cerebral = white * (z > -5)
    return Atlas(
        _volume(gm, wm),
        box,
        _volume(skull, _face_distance(x, y, z)),
        _volume(-hull, *normal),
        _volume(vent, *wall),
        *_tiles(),
        white_sites=places((cerebral > 0.85) & (vent > 1) & (vent < 16)),
        rim_sites=places((cerebral > 0.6) & (hull < -5) & (hull > -14) & (vent > 16)),
        hull_sites=places((np.abs(skull) < 1.2) & above & (z > -25) & (np.abs(hull) < 9)),
    )


def tentorium_mm(x, y):
    """z (mm) of the tent between the hemispheres and the cerebellum."""
    return 3.0 - 0.42 * abs(x) - 0.26 * (-45.0 - y).clip(0)


def _volume(*maps: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.stack([m.transpose(2, 1, 0) for m in maps]).astype(np.float32)[None])


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in mm to the border of a mask: negative inside, positive outside."""
    from scipy import ndimage

    outside, inside = ndimage.distance_transform_edt(~mask), ndimage.distance_transform_edt(mask)
    return ((outside - inside) * GRID_MM).astype(np.float32)


def _closed(mask: np.ndarray, reach_mm: float, shrink_mm: float = 0.0) -> np.ndarray:
    """Morphological closing by a ball; `shrink_mm` less is taken back than was added."""
    from scipy import ndimage

    ball = ndimage.distance_transform_edt(~mask) <= reach_mm / GRID_MM
    return mask | (ndimage.distance_transform_edt(ball) > (reach_mm - shrink_mm) / GRID_MM)


def _normal(distance: np.ndarray) -> np.ndarray:
    """Unit vectors along the gradient, (3, X, Y, Z); shorter than one where the distance is flat."""
    gradient = np.stack(np.gradient(distance, GRID_MM))
    return gradient / np.maximum(np.linalg.norm(gradient, axis=0), 1.0)


def _face_distance(x, y, z) -> np.ndarray:
    """Distance in mm to the smooth union of _FACE, to first order (exact at the surface of each ellipsoid)."""
    total = 0.0
    for (cx, cy, cz), (rx, ry, rz) in _FACE:
        a, b, c = x - cx, y - cy, z - cz
        near = np.sqrt((a / rx) ** 2 + (b / ry) ** 2 + (c / rz) ** 2) + 1e-6
        slope = np.sqrt((a / rx**2) ** 2 + (b / ry**2) ** 2 + (c / rz**2) ** 2) + 1e-6
        total = total + np.exp(-np.clip(near * (near - 1) / slope, -60, 60) / 5.0)
    return (-5.0 * np.log(total)).astype(np.float32)


def _tiles() -> tuple[torch.Tensor, torch.Tensor]:
    """The periodic noise, and the sheets: zeros of band-pass noise, divided by its slope to measure distance."""
    rng = np.random.default_rng(20240601)
    k = np.fft.fftfreq(TILE)
    radius = np.sqrt(k[:, None, None] ** 2 + k[None, :, None] ** 2 + k[None, None, :] ** 2)

    def filtered(gain):
        noise = np.fft.ifftn(np.fft.fftn(rng.standard_normal((TILE,) * 3)) * gain).real
        return (noise - noise.mean()) / noise.std()

    smooth = np.stack([filtered(np.exp(-0.5 * (2 * np.pi * radius) ** 2)) for _ in range(4)])
    band = filtered(np.exp(-0.5 * ((radius * FOLD_WAVE - 1) / 0.22) ** 2))
    slope = np.sqrt(sum(((np.roll(band, -1, a) - np.roll(band, 1, a)) / 2) ** 2 for a in range(3)))
    sheets = band / np.hypot(slope, 0.35 * slope.mean())
    depth = filtered(np.exp(-0.5 * (2 * np.pi * radius * 2.5) ** 2))

    def tile(maps):
        wrapped = np.pad(maps, [(0, 0)] + [(0, 1)] * 3, mode="wrap")
        return torch.from_numpy(wrapped.astype(np.float32)[None])

    return tile(smooth), tile(np.stack([sheets, depth]))


def sample(volume: torch.Tensor, box, points: torch.Tensor, outside: str = "border") -> torch.Tensor:
    """Trilinear values of `volume` (1, C, Z, Y, X) over `box` at `points` (P, 3) mm -> (C, P)."""
    low = points.new_tensor([side[0] for side in box])
    high = points.new_tensor([side[1] for side in box])
    grid = (2 * (points - low) / (high - low) - 1)[None, None, None]
    return F.grid_sample(volume, grid, mode="bilinear", padding_mode=outside, align_corners=True)[0, :, 0, 0]


def sample_tile(tile: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
    """Trilinear values of a periodic tile at `cells` (P, 3), counted in cells from its corner -> (C, P)."""
    grid = (cells.remainder(TILE) * (2 / TILE) - 1)[None, None, None]
    return F.grid_sample(tile, grid, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0, 0]
