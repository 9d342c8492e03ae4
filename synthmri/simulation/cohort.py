"""The simulated cohort: volumes of imaginary subjects from one imaginary scanner, like a hospital's research set."""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field

from synthmri.params import Section
from synthmri.simulation import heads


class Cohort(Section):
    """Section `cohort`."""

    seed: int = Field(ge=0)
    subjects: int = Field(ge=1, le=100_000)
    lesion_share: float = Field(ge=0, le=1)
    pixel_mm: float = Field(ge=0.3, le=3)
    slice_mm: float = Field(ge=1, le=10)
    field_of_view_mm: tuple[float, float]
    coverage_mm: float = Field(ge=20, le=180)
    anatomy: heads.Anatomy
    scanner: heads.Scanner


@dataclass(frozen=True)
class Subject:
    """volumes: contrast -> int16 (X, Y, Z) in RAS+, arbitrary units; affine: voxel -> mm, 4 x 4."""

    name: str
    age_like: int
    lesion_ml: float
    volumes: dict[str, np.ndarray]
    affine: np.ndarray


SUBPLANES = 2  # planes averaged across a slice's thickness: its partial volume
UNITS = 400.0  # signal of white matter in the written volumes


def simulate_one(atlas: heads.Atlas, p: Cohort, i: int) -> Subject:
    """Subject i: one head, seen once in every contrast of p.scanner.sequences; it depends on (p.seed, i) alone."""
    generator = torch.Generator().manual_seed(p.seed * 1_000_003 + i)
    subject = heads.draw_subjects(atlas, p.anatomy, 1, generator)
    contrasts = list(p.scanner.sequences)
    scans = heads.draw_scans(p.scanner, contrasts, generator)

    # An age-like number that widens ventricles and sulci, each with a spread of its own.
    age, a, b, ill = torch.rand(4, generator=generator)
    for key, mix in (("ventricles_mm", a), ("sulci", b)):
        low, high = getattr(p.anatomy, key)
        subject[key] = low + (high - low) * (0.7 * age + 0.3 * mix).reshape(1)
    if ill >= p.lesion_share:
        subject["lesion_count"] = torch.zeros(1)

    width, height = p.field_of_view_mm
    nx, ny, nz = round(width / p.pixel_mm), round(height / p.pixel_mm), round(p.coverage_mm / p.slice_mm)
    x = (torch.arange(nx) - (nx - 1) / 2) * p.pixel_mm
    y = (torch.arange(ny) - (ny - 1) / 2) * p.pixel_mm - 18.0
    top = float(heads.vertex_mm(subject)) + 6.0
    z = top - p.slice_mm * (torch.arange(nz) + 0.5).flip(0)
    field = heads.displacement(atlas, subject)
    noise = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    slices = {contrast: [] for contrast in contrasts}
    lesion_px = 0.0
    for level in z.tolist():
        offsets = ((torch.arange(SUBPLANES) + 0.5) / SUBPLANES - 0.5) * p.slice_mm
        gx, gy, gz = torch.meshgrid(x, y, level + offsets, indexing="ij")
        points = torch.stack([gx, gy, gz], -1).reshape(1, -1, 3)
        fractions = heads.tissue_fractions(atlas, subject, heads.to_atlas(subject, field, points))
        fractions = fractions.reshape(1, len(heads.TISSUES), nx * ny, SUBPLANES).mean(-1)
        lesion_px += float(fractions[:, heads.TISSUES.index("lesion")].sum())
        middle = points.reshape(1, nx * ny, SUBPLANES, 3).mean(2)
        for c, contrast in enumerate(contrasts):
            scan = {key: value[c : c + 1] for key, value in scans.items()}
            image = heads.signal(fractions, scan, middle).reshape(1, nx, ny)
            image = heads.blur(image, scan["blur_mm"] / p.pixel_mm)
            slices[contrast].append(heads.rician(image, scan["noise"], noise)[0])
    volumes = {
        contrast: (torch.stack(images, -1) * UNITS).round().clamp(0, 32767).to(torch.int16).numpy()
        for contrast, images in slices.items()
    }
    affine = np.diag([p.pixel_mm, p.pixel_mm, p.slice_mm, 1.0])
    affine[:3, 3] = [float(x[0]), float(y[0]), float(z[0])]
    lesion_ml = lesion_px * p.pixel_mm**2 * p.slice_mm / 1000
    return Subject(f"sub-{i + 1:04d}", round(20 + 65 * float(age)), round(lesion_ml, 2), volumes, affine)
