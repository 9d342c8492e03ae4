"""Simulated heads: a tissue atlas, one smooth invertible deformation a subject, and MR signal equations.

Everything is torch and batched, and every random number is drawn apart from being applied, so that the same code makes
the volumes of the simulated cohort and the endless slices that the base model is pretrained on, on a CPU or a GPU.
Nothing here has seen a patient: the anatomy is the ICBM152 2009 average of healthy adults (Fonov 2011), which comes
with nilearn, and the layers around the brain are drawn.

World coordinates are millimetres in MNI space and RAS+: x grows to the right, y to the front, z to the top.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from synthmri.params import Section

TISSUES = ("air", "gm", "wm", "csf", "lesion", "bone", "marrow", "fat", "muscle", "vitreous")

# Proton density (relative), T1 and T2 (ms) about 1.5 T: of the order that Stanisz 2005 (doi 10.1002/mrm.20605), de
# Bazelaire 2004 (doi 10.1148/radiol.2303021331) and BrainWeb (Kwan 1999, doi 10.1109/42.816072) report, chosen so
# that the three contrasts look as on clinical scans. T2 of fluids is what a fast spin echo shows.
RELAXATION = {
    "air": (0.0, 1000.0, 100.0),
    "gm": (0.82, 1120.0, 93.0),
    "wm": (0.72, 780.0, 81.0),
    "csf": (1.0, 4200.0, 1400.0),
    "lesion": (0.86, 1350.0, 150.0),
    "bone": (0.06, 1000.0, 30.0),
    "marrow": (0.45, 480.0, 60.0),
    "fat": (0.85, 320.0, 75.0),
    "muscle": (0.75, 980.0, 38.0),
    "vitreous": (1.0, 3800.0, 1000.0),
}

Range = tuple[float, float]
_BOX_MM = ((-110.0, 110.0), (-146.0, 116.0), (-84.0, 126.0))  # x, y, z: room for skull and scalp around the atlas
_KNOT_MM = 10.0  # spacing of the deformation's knots
_CENTRE_MM = (0.0, -18.0, 8.0)  # what heads are scaled and turned about
_INNER_TOP_MM = 82.0  # z of the top of the inner skull in the atlas, over the crown; a test holds it there
_SKIN_MM = 1.8


def _ordered(value: Range) -> Range:
    if value[0] > value[1]:
        raise ValueError(f"the lower end {value[0]} is above the upper end {value[1]}; swap them")
    return value


class Sequence(Section):
    """Timing of a spin echo (ti_ms = [0, 0]) or an inversion recovery sequence, in milliseconds."""

    tr_ms: Range
    te_ms: Range
    ti_ms: Range = (0.0, 0.0)
    fat: Range = (1.0, 1.0)

    @field_validator("tr_ms", "te_ms", "ti_ms", "fat")
    @classmethod
    def _range(cls, value: Range) -> Range:
        if value[0] < 0:
            raise ValueError(f"a time or factor is at least 0, not {value[0]}")
        return _ordered(value)


class Anatomy(Section):
    """How heads differ: every value is a range [low, high] from which a subject is drawn uniformly."""

    scale: Range = Field(description="size of the head relative to the atlas")
    shape_mm: Range = Field(description="standard deviation of the smooth deformation")
    ventricles_mm: Range = Field(description="how far the ventricles' walls move out (or in, below 0)")
    sulci: Range = Field(description="weight of CSF against grey matter where they meet; 1 leaves the atlas as it is")
    lesions: Range = Field(description="number of white-matter lesions")
    tilt_deg: Range = Field(description="rotation about each axis")
    offset_mm: Range = Field(description="shift along each axis")

    @field_validator("*")
    @classmethod
    def _range(cls, value: Range) -> Range:
        return _ordered(value)


class Scanner(Section):
    """How images of one head differ: ranges as in Anatomy."""

    noise: Range = Field(description="standard deviation of the noise in each channel, relative to white matter")
    bias: Range = Field(description="standard deviation of the log of the receive field")
    blur_mm: Range = Field(description="standard deviation of the in-plane point spread")
    texture: Range = Field(description="relative standard deviation of tissue signal over a few mm")
    relaxation: Range = Field(description="relative error of T1, T2 and proton density of each tissue, both ways")
    sequences: dict[str, Sequence]

    @field_validator("noise", "bias", "blur_mm", "texture", "relaxation")
    @classmethod
    def _range(cls, value: Range) -> Range:
        if value[0] < 0:
            raise ValueError(f"at least 0, not {value[0]}")
        return _ordered(value)


@dataclass(frozen=True)
class Atlas:
    """Maps that a head is sampled from, each (1, C, Z, Y, X) float32 over its own box in mm.

    tissues: grey and white matter probability, 1 mm.
    fields: signed distance (mm) to the inner skull (negative inside) and to the ventricles, normal of their wall; 2 mm.
    lesion_sites: (M, 3) mm, places in white matter near the ventricles.
    """

    tissues: torch.Tensor
    tissues_box: tuple
    fields: torch.Tensor
    lesion_sites: torch.Tensor

    def to(self, device) -> "Atlas":
        return Atlas(self.tissues.to(device), self.tissues_box, self.fields.to(device), self.lesion_sites.to(device))


@lru_cache(maxsize=1)
def load_atlas() -> Atlas:
    """The ICBM152 2009 maps inside nilearn, and the distances that skull, ventricles and lesions are drawn from."""
    from nilearn.datasets import load_mni152_gm_template, load_mni152_wm_template
    from scipy import ndimage

    gm_image, wm_image = load_mni152_gm_template(resolution=1), load_mni152_wm_template(resolution=1)
    gm, wm = (np.clip(image.get_fdata(dtype=np.float32), 0, 1) for image in (gm_image, wm_image))
    origin = gm_image.affine[:3, 3]
    box = tuple((float(o), float(o + n - 1)) for o, n in zip(origin, gm.shape, strict=True))

    # Everything else is smooth, so it is worked out at 2 mm in the larger box.
    axes = [np.arange(low, high + 1, 2.0) for low, high in _BOX_MM]
    index = np.meshgrid(*[axis - o for axis, o in zip(axes, origin, strict=True)], indexing="ij")
    brain = ndimage.map_coordinates(ndimage.gaussian_filter(gm + wm, 1.0), index, order=1, mode="constant")
    brain = ndimage.binary_fill_holes(brain > 0.3)
    # Closing by a large ball spans sulci and cisterns, as the inner skull does.
    reach = 7  # voxels of 2 mm
    ball = ndimage.distance_transform_edt(~brain) <= reach
    inside = ndimage.distance_transform_edt(ball) > reach - 1
    inside |= brain
    skull = _signed_distance(inside) * 2.0
    skull = ndimage.gaussian_filter(skull, 1.5)

    matter = ndimage.map_coordinates(gm + wm, index, order=1, mode="constant")
    x, y, z = np.meshgrid(*axes, indexing="ij")
    deep = (skull < -18) & (np.abs(x) < 40) & (y > -75) & (y < 45) & (z > -10) & (z < 40)
    ventricle = ndimage.binary_opening(deep & (matter < 0.5))
    labels, count = ndimage.label(ventricle)
    sizes = ndimage.sum_labels(ventricle, labels, range(1, count + 1))
    ventricle = np.isin(labels, 1 + np.flatnonzero(sizes > 60))
    vent = ndimage.gaussian_filter(_signed_distance(ventricle) * 2.0, 1.0)
    normal = np.stack(np.gradient(ndimage.gaussian_filter(vent, 1.5), 2.0))
    normal /= np.maximum(np.linalg.norm(normal, axis=0), 1.0)
    white = ndimage.map_coordinates(wm, index, order=1, mode="constant")
    sites = np.argwhere((white > 0.85) & (vent > 1) & (vent < 16) & (z > -5))
    sites = np.stack([axes[i][sites[:, i]] for i in range(3)], axis=1)

    def volume(*maps):
        return torch.from_numpy(np.stack([m.transpose(2, 1, 0) for m in maps]).astype(np.float32)[None])

    return Atlas(volume(gm, wm), box, volume(skull, vent, *normal), torch.from_numpy(sites.astype(np.float32)))


def _signed_distance(mask: np.ndarray) -> np.ndarray:
    """Distance in voxels to the border of a mask: negative inside, positive outside."""
    from scipy import ndimage

    return ndimage.distance_transform_edt(~mask) - ndimage.distance_transform_edt(mask)


def sample(volume: torch.Tensor, box, points: torch.Tensor, outside: str = "border") -> torch.Tensor:
    """Trilinear values of `volume` (1 or B, C, Z, Y, X) over `box` at `points` (B, P, 3) mm -> (B, C, P)."""
    low = points.new_tensor([side[0] for side in box])
    high = points.new_tensor([side[1] for side in box])
    grid = 2 * (points - low) / (high - low) - 1
    if volume.shape[0] == 1:  # one atlas for the whole batch
        flat = grid.reshape(1, 1, 1, -1, 3)
        out = F.grid_sample(volume, flat, mode="bilinear", padding_mode=outside, align_corners=True)
        return out.reshape(volume.shape[1], points.shape[0], -1).transpose(0, 1)
    out = F.grid_sample(volume, grid[:, None, None], mode="bilinear", padding_mode=outside, align_corners=True)
    return out[:, :, 0, 0]


def uniform(low_high: Range, n: int, generator: torch.Generator) -> torch.Tensor:
    """(n,) uniform numbers in [low, high]."""
    low, high = low_high
    return low + (high - low) * torch.rand(n, generator=generator)


def draw_subjects(atlas: Atlas, ranges: Anatomy, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Everything random about n heads, on the CPU from one generator. Tensors of n rows."""
    knots = [round((high - low) / _KNOT_MM) + 1 for low, high in reversed(_BOX_MM)]
    coarse = torch.randn(n, 3, *[max(2, k // 3) for k in knots], generator=generator)
    fine = torch.randn(n, 3, *knots, generator=generator)
    # Broad differences of shape, and finer ones that move single gyri.
    velocity = F.interpolate(coarse, size=knots, mode="trilinear", align_corners=True) + 0.35 * fine
    velocity = velocity * uniform(ranges.shape_mm, n, generator)[:, None, None, None, None]
    most = max(1, math.ceil(ranges.lesions[1]))
    return {
        "velocity": velocity,
        "ventricles_mm": uniform(ranges.ventricles_mm, n, generator),
        "scale": uniform(ranges.scale, n, generator)[:, None] * (1 + 0.03 * torch.randn(n, 3, generator=generator)),
        "tilt_deg": torch.stack([uniform(ranges.tilt_deg, n, generator) for _ in range(3)], 1),
        "offset_mm": torch.stack([uniform(ranges.offset_mm, n, generator) for _ in range(3)], 1),
        "sulci": uniform(ranges.sulci, n, generator),
        "sharp": 1.2 + 1.3 * torch.rand(n, generator=generator),
        "lesion_count": uniform(ranges.lesions, n, generator).round(),
        "lesion_site": atlas.lesion_sites.cpu()[torch.randint(len(atlas.lesion_sites), (n, most), generator=generator)],
        "lesion_mm": 1.5 + 3.5 * torch.rand(n, most, generator=generator) ** 2,
        "bone_mm": 4 + 4 * torch.rand(n, generator=generator),
        "fat_mm": 2 + 4 * torch.rand(n, generator=generator),
        "layers": _smooth(torch.randn(n, 2, 9, 11, 9, generator=generator), 4),
    }


def _smooth(knots: torch.Tensor, factor: int) -> torch.Tensor:
    """Random knots on a finer grid without the creases of linear interpolation (twice a box: a quadratic spline)."""
    size = [(k - 1) * factor + 1 for k in knots.shape[2:]]
    fine = F.interpolate(knots, size=size, mode="trilinear", align_corners=True)
    padded = F.pad(fine, [factor // 2] * 6, mode="replicate")
    return F.avg_pool3d(padded, 2 * (factor // 2) + 1, stride=1)


def vertex_mm(subject: dict[str, torch.Tensor]) -> torch.Tensor:
    """(B,) z in mm of the top of the scalp, tilt and deformation left aside."""
    scalp = _INNER_TOP_MM + subject["bone_mm"] + subject["fat_mm"] + _SKIN_MM
    return _CENTRE_MM[2] + subject["scale"][:, 2] * (scalp - _CENTRE_MM[2]) + subject["offset_mm"][:, 2]


def displacement(atlas: Atlas, subject: dict[str, torch.Tensor]) -> torch.Tensor:
    """The deformation at its knots, (B, 3, Z, Y, X) mm, subject -> atlas: the exponential of a stationary velocity.

    Scaling and squaring (Arsigny 2006, doi 10.1007/11866565_113): invertible however large the velocity.
    """
    velocity = subject["velocity"]
    knots = knot_points(velocity)
    fields = sample(atlas.fields, _BOX_MM, knots.reshape(1, -1, 3)).reshape(1, 5, *velocity.shape[2:])
    distance, normal = fields[:, 1:2], fields[:, 2:5]
    # Moving the walls out means to look further in: against the outward normal, fading away from the wall.
    wall = -normal * torch.exp(-((distance / 14.0) ** 2))
    velocity = velocity + subject["ventricles_mm"][:, None, None, None, None] * wall
    steps = 5
    field = velocity / 2**steps
    for _ in range(steps):
        moved = knots + field.permute(0, 2, 3, 4, 1)
        field = field + sample(field, _BOX_MM, moved.reshape(len(field), -1, 3)).reshape(field.shape)
    return _smooth(field, 2)


def knot_points(velocity: torch.Tensor) -> torch.Tensor:
    """(Z, Y, X, 3) mm: where the knots of the deformation lie."""
    axes = [
        torch.linspace(low, high, count, device=velocity.device)
        for (low, high), count in zip(_BOX_MM, reversed(velocity.shape[2:]), strict=True)
    ]
    z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def rotation(angles_deg: torch.Tensor) -> torch.Tensor:
    """(B, 3) angles about x, y, z -> (B, 3, 3)."""
    a, b, c = torch.deg2rad(angles_deg).unbind(-1)
    one, zero = torch.ones_like(a), torch.zeros_like(a)

    def matrix(*rows):
        return torch.stack([torch.stack(row, -1) for row in rows], -2)

    about_x = matrix((one, zero, zero), (zero, a.cos(), -a.sin()), (zero, a.sin(), a.cos()))
    about_y = matrix((b.cos(), zero, b.sin()), (zero, one, zero), (-b.sin(), zero, b.cos()))
    about_z = matrix((c.cos(), -c.sin(), zero), (c.sin(), c.cos(), zero), (zero, zero, one))
    return about_z @ about_y @ about_x


def to_atlas(subject: dict[str, torch.Tensor], field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Scanner coordinates (B, P, 3) mm -> atlas coordinates (B, P, 3) mm: undo pose and size, then deform."""
    centre = points.new_tensor(_CENTRE_MM)
    turned = (points - subject["offset_mm"][:, None] - centre) @ rotation(subject["tilt_deg"])
    local = turned / subject["scale"][:, None] + centre
    return local + sample(field, _BOX_MM, local).transpose(1, 2)


def tissue_fractions(atlas: Atlas, subject: dict[str, torch.Tensor], at: torch.Tensor) -> torch.Tensor:
    """Fractions of TISSUES at atlas coordinates `at` (B, P, 3) mm -> (B, 10, P); they sum to 1."""
    gm, wm = sample(atlas.tissues, atlas.tissues_box, at, outside="zeros").unbind(1)
    skull = sample(atlas.fields[:, :1], _BOX_MM, at)[:, 0]
    wobble = sample(subject["layers"], _BOX_MM, at)
    x, y, z = at.unbind(-1)

    # The average brain is soft at its borders; a power of the probabilities makes one person's again.
    sharp, sulci = subject["sharp"][:, None], subject["sulci"][:, None]
    csf = (1 - gm - wm).clamp(0, 1)
    parts = torch.stack([gm, wm, csf * sulci]).clamp_min(1e-4) ** sharp
    gm, wm, csf = parts / parts.sum(0)

    lesion = torch.zeros_like(gm)
    for k in range(subject["lesion_site"].shape[1]):
        there = (subject["lesion_count"] > k).float()[:, None]
        site, size = subject["lesion_site"][:, k, None], subject["lesion_mm"][:, k, None]
        if not ((z - site[..., 2]).abs() < there * (size + 6)).any():
            continue  # no slice meets this one
        away = (at - site + 1.2 * wobble[:, :1].transpose(1, 2)).norm(dim=-1)
        lesion = torch.maximum(lesion, there * torch.sigmoid((size - away) / 0.7))
    lesion = lesion * wm
    wm = wm - lesion

    # Shells around the inner skull, by distance from it; each edge half a millimetre soft.
    edge = skull + 0.8 * wobble[:, 0]
    bone_mm = subject["bone_mm"][:, None] * (1 + 0.12 * wobble[:, 1])
    fat_mm = subject["fat_mm"][:, None] * (1 + 0.2 * wobble[:, 0])
    muscle_mm = 9 * torch.sigmoid((14 - z) / 7) * torch.sigmoid((x.abs() - 48) / 6) * torch.sigmoid((y + 55) / 10)

    def below(distance):
        return torch.sigmoid((distance - edge) / 0.5)

    inner, outer = below(0.0), below(bone_mm)
    with_muscle, with_fat = below(bone_mm + muscle_mm), below(bone_mm + muscle_mm + fat_mm)
    with_skin = below(bone_mm + muscle_mm + fat_mm + _SKIN_MM)
    diploe = below(bone_mm - 1.6) - below(torch.full_like(edge, 1.8))
    diploe = diploe.clamp_min(0) * (0.75 + 0.25 * wobble[:, 1]).clamp(0, 1)

    # Orbits and frontal sinus, which the lower slices meet.
    eye = torch.minimum(
        (at - at.new_tensor([33.0, 62.0, -36.0])).norm(dim=-1), (at - at.new_tensor([-33.0, 62.0, -36.0])).norm(dim=-1)
    )
    globe = torch.sigmoid((12 - eye) / 0.5) * (1 - inner)
    orbit = torch.sigmoid((21 - eye) / 1.0) * (1 - inner) - globe
    sinus = torch.sigmoid((7 - (at - at.new_tensor([0.0, 66.0, -26.0])).norm(dim=-1)) / 0.7) * (1 - inner)
    face = 1 - globe - orbit.clamp_min(0) - (sinus - globe).clamp_min(0)
    face = face.clamp_min(0)

    bone = ((outer - inner).clamp_min(0) - diploe).clamp_min(0)
    muscle = (with_muscle - outer).clamp_min(0) + (with_skin - with_fat).clamp_min(0)
    fat = (with_fat - with_muscle).clamp_min(0)
    parts = [
        gm * inner,
        wm * inner,
        csf * inner,
        lesion * inner,
        bone * face,
        diploe * face,
        fat * face + orbit.clamp_min(0),
        muscle * face,
        globe,
    ]
    solid = torch.stack(parts, 1).clamp_min(0)
    solid = solid / solid.sum(1, keepdim=True).clamp_min(1)
    return torch.cat([(1 - solid.sum(1, keepdim=True)).clamp_min(0), solid], 1)


def draw_scans(ranges: Scanner, contrasts: list[str], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Everything random about len(contrasts) acquisitions: tissue signals, texture, bias, noise, point spread."""
    n = len(contrasts)
    times = {
        key: torch.cat([uniform(getattr(ranges.sequences[c], key), 1, generator) for c in contrasts])
        for key in ("tr_ms", "te_ms", "ti_ms", "fat")
    }
    table = torch.tensor([RELAXATION[t] for t in TISSUES])  # (10, 3)
    spread = uniform(ranges.relaxation, n, generator)[:, None, None]
    table = table * (1 + spread * (2 * torch.rand(n, *table.shape, generator=generator) - 1))
    signal = spin_echo(*table.unbind(-1), times["tr_ms"][:, None], times["te_ms"][:, None], times["ti_ms"][:, None])
    signal[:, TISSUES.index("fat")] *= times["fat"]
    signal[:, TISSUES.index("marrow")] *= times["fat"]
    return {
        "signal": signal / signal[:, TISSUES.index("wm"), None].clamp_min(1e-3),
        "noise": uniform(ranges.noise, n, generator),
        "blur_mm": uniform(ranges.blur_mm, n, generator),
        "texture": uniform(ranges.texture, n, generator),
        "bias": uniform(ranges.bias, n, generator)[:, None, None, None, None]
        * torch.randn(n, 1, 4, 4, 4, generator=generator),
        "grain": torch.randn(n, 1, 42, 52, 42, generator=generator),
    }


def spin_echo(pd, t1, t2, tr, te, ti):
    """Signal of a spin echo, or with ti > 0 of an inversion recovery spin echo, magnitude; times in ms.

    SE: PD (1 - exp(-TR/T1)) exp(-TE/T2); IR: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)
    (Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004, chapter 14; the terms in TE/T1 are left out).
    """
    recovery = torch.where(ti > 0, 1 - 2 * torch.exp(-ti / t1) + torch.exp(-tr / t1), 1 - torch.exp(-tr / t1))
    return pd * recovery.abs() * torch.exp(-te / t2)


def signal(fractions: torch.Tensor, scan: dict[str, torch.Tensor], points: torch.Tensor) -> torch.Tensor:
    """Noise-free signal (B, P) of tissue fractions (B, 10, P) seen at scanner coordinates (B, P, 3) mm."""
    clean = torch.einsum("btp,bt->bp", fractions, scan["signal"])
    grain = sample(scan["grain"], _BOX_MM, points)[:, 0]
    bias = sample(scan["bias"], _BOX_MM, points)[:, 0]
    return clean * (1 + scan["texture"][:, None] * grain) * torch.exp(bias)


def rician(clean: torch.Tensor, sigma: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Magnitude of a signal with Gaussian noise in both channels (Gudbjartsson 1995, doi 10.1002/mrm.1910340618).

    clean: (B, ...); sigma: (B,); the noise is drawn on the generator's device.
    """
    shape = (-1,) + (1,) * (clean.ndim - 1)
    real, imaginary = (
        torch.randn(clean.shape, generator=generator, device=generator.device).to(clean.device) for _ in range(2)
    )
    sigma = sigma.to(clean.device).reshape(shape)
    return torch.hypot(clean + sigma * real, sigma * imaginary)


def blur(images: torch.Tensor, sigma_px: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of (B, H, W), each image by its own standard deviation in pixels."""
    reach = max(1, math.ceil(3 * float(sigma_px.max())))
    t = torch.arange(-reach, reach + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(t**2) / (2 * sigma_px.to(images).clamp_min(1e-3)[:, None] ** 2))
    kernel = kernel / kernel.sum(1, keepdim=True)
    n = len(images)
    out = F.conv2d(images[None], kernel[:, None, :, None], padding=(reach, 0), groups=n)
    return F.conv2d(out, kernel[:, None, None, :], padding=(0, reach), groups=n)[0]


# Image axes of each plane in world axes: (down the rows, along the columns, out of the slice). Radiological: the
# patient's left is on the right of the image; a sagittal slice looks to the left.
PLANES = {
    "axial": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "coronal": ((0, 0, -1), (-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 0, -1), (0, -1, 0), (1, 0, 0)),
}


def plane_points(centres_mm: torch.Tensor, planes: list[str], pixel_mm: torch.Tensor, size: int) -> torch.Tensor:
    """Scanner coordinates (B, size * size, 3) mm of square slices about `centres_mm` (B, 3), row by row."""
    axes = centres_mm.new_tensor([PLANES[plane] for plane in planes])  # (B, 3 image axes, 3)
    step = torch.arange(size, dtype=centres_mm.dtype, device=centres_mm.device) - (size - 1) / 2
    rows, columns = torch.meshgrid(step, step, indexing="ij")
    offsets = rows.reshape(1, -1, 1) * axes[:, 0, None] + columns.reshape(1, -1, 1) * axes[:, 1, None]
    return centres_mm[:, None] + pixel_mm.to(centres_mm)[:, None, None] * offsets


def random_slices(
    atlas: Atlas,
    anatomy: Anatomy,
    scanner: Scanner,
    contrasts: list[str],
    planes: list[str],
    *,
    depth_mm: Range,
    pixel_mm: Range,
    size: int,
    spread_mm: float,
    generator: torch.Generator,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One slice of each of len(contrasts) new heads.

    Axial slices lie `depth_mm` below the vertex, the others as far from the head's centre; each slice is centred on the
    head, or up to `spread_mm` away from it. Random numbers come from `generator` (CPU); the rest runs where `atlas` is.

    Returns (B, size, size) float32 in [0, 1] and the depths (B,) in mm.
    """
    n, device = len(contrasts), atlas.tissues.device
    subject, scan = draw_subjects(atlas, anatomy, n, generator), draw_scans(scanner, contrasts, generator)
    depth, pixel = uniform(depth_mm, n, generator), uniform(pixel_mm, n, generator)
    ceiling = uniform((0.9, 1.15), n, generator)
    centres = torch.tensor(_CENTRE_MM) + subject["offset_mm"]
    normal = torch.tensor([PLANES[plane] for plane in planes], dtype=torch.float32)[:, 2]
    axial = torch.tensor([plane == "axial" for plane in planes])
    vertex = vertex_mm(subject) - centres[:, 2]  # the vertex seen from the centre
    along = torch.where(axial, depth - vertex, depth - sum(depth_mm) / 2)
    centres = centres + along[:, None] * normal
    centres = centres + spread_mm * (2 * torch.rand(n, 3, generator=generator) - 1) * (1 - normal.abs())
    noise_seed = int(torch.randint(2**62, (1,), generator=generator))

    subject, scan = ({k: v.to(device) for k, v in group.items()} for group in (subject, scan))
    points = plane_points(centres.to(device), planes, pixel, size)
    at = to_atlas(subject, displacement(atlas, subject), points)
    fractions = tissue_fractions(atlas, subject, at)
    images = signal(fractions, scan, points).reshape(n, size, size)
    images = blur(images, scan["blur_mm"] / pixel.to(device))
    images = rician(images, scan["noise"], torch.Generator(device).manual_seed(noise_seed))
    # The window that preprocessing would set: the 99.5th percentile inside the head, give or take a volume's rest.
    head = (fractions[:, 0] < 0.5).reshape(n, -1)
    white = [torch.quantile(i[h] if h.sum() > 100 else i, 0.995) for i, h in zip(images.flatten(1), head, strict=True)]
    return (images / (torch.stack(white) * ceiling.to(device))[:, None, None]).clamp(0, 1), depth
