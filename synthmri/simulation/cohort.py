"""The simulated cohort: volumes of imaginary subjects from one imaginary scanner, like a hospital's research set."""

from dataclasses import dataclass

import numpy as np
import torch
from pydantic import Field
from scipy import ndimage

from synthmri import streams
from synthmri.params import Section
from synthmri.simulation import atlas as maps
from synthmri.simulation import heads, lesions, scanner, slices
from synthmri.simulation.tissues import TISSUES


class Cohort(Section):
    """Section `cohort`."""

    seed: int = Field(ge=0)
    subjects: int = Field(ge=1, le=100_000)
    lesion_share: float = Field(ge=0, le=1)
    lesion_size: float = Field(ge=0.3, le=4)
    pixel_mm: float = Field(ge=0.3, le=3)
    slice_mm: float = Field(ge=1, le=10)
    field_of_view_mm: tuple[float, float]
    coverage_mm: float = Field(ge=20, le=180)
    anatomy: heads.Anatomy
    scanner: scanner.Scanner


@dataclass(frozen=True)
class Subject:
    """volumes: contrast -> int16 (X, Y, Z) in RAS+, arbitrary units; lesions: uint8 (X, Y, Z), 1 where a voxel is
    mostly lesion and a reader would mark it; affine: voxel -> mm, 4 x 4."""

    name: str
    age_like: int
    lesion_ml: float
    volumes: dict[str, np.ndarray]
    lesions: np.ndarray
    affine: np.ndarray


UNITS = 400.0  # signal of white matter in the written volumes
# Area on a slice below which no lesion is marked. Of areas that a reader marked on 5 mm slices of people with multiple
# sclerosis 20 % were below 10 mm2 and 80 % below 80 (Wang 1997, doi 10.1136/jnnp.63.4.452): here 20 % and 74 %.
MARKED_MM2 = 2.5


def simulate_one(atlas: maps.Atlas, p: Cohort, i: int) -> Subject:
    """Subject i: one head, seen once in every contrast of p.scanner.sequences; it depends on (p.seed, i) alone."""
    generator = streams.generator(p.seed, "subject", i)
    head = heads.draw(atlas, p.anatomy, generator)
    contrasts = list(p.scanner.sequences)
    scans = scanner.draw_scans(p.scanner, contrasts, generator)

    # An age-like number that widens ventricles and sulci, each with a spread of its own.
    age, a, b, ill = torch.rand(4, generator=generator).tolist()
    for key, mix in (("ventricles_mm", a), ("sulci", b)):
        low, high = getattr(p.anatomy, key)
        setattr(head, key, low + (high - low) * (0.7 * age + 0.3 * mix))
    if ill >= p.lesion_share:
        head.lesions = lesions.draw_lesions(atlas, 0, generator)
    head.lesions = head.lesions.grown(p.lesion_size)

    width, height = p.field_of_view_mm
    nx, ny, nz = round(width / p.pixel_mm), round(height / p.pixel_mm), round(p.coverage_mm / p.slice_mm)
    x = (torch.arange(nx) - (nx - 1) / 2) * p.pixel_mm
    y = (torch.arange(ny) - (ny - 1) / 2) * p.pixel_mm + heads.CENTRE_MM[1] + 6.0
    z = heads.vertex_mm(head) + 6.0 - p.slice_mm * (torch.arange(nz) + 0.5).flip(0)
    field = heads.displacement(atlas, head)
    noise = torch.Generator().manual_seed(int(torch.randint(2**62, (1,), generator=generator)))
    images, lesion = [], []
    for level in z:
        points = torch.stack(torch.meshgrid(x, y, level, indexing="ij"), -1)[:, :, 0]
        fractions = slices.seen(atlas, head, field, points, (0, 0, 1), p.slice_mm)
        lesion.append(fractions[TISSUES.index("lesion")].reshape(nx, ny))
        clean = scanner.signals(atlas, fractions, scans, points.reshape(-1, 3)).reshape(-1, nx, ny)
        images.append(scanner.acquire(clean, scans, p.pixel_mm, p.slice_mm, noise))
    volumes = (torch.stack(images, -1) * UNITS).round().clamp(0, 32767).to(torch.int16).numpy()
    lesion = torch.stack(lesion, -1)
    affine = np.diag([p.pixel_mm, p.pixel_mm, p.slice_mm, 1.0])
    affine[:3, 3] = [float(x[0]), float(y[0]), float(z[0])]
    return Subject(
        name=f"sub-{i + 1:04d}",
        age_like=round(20 + 65 * age),
        lesion_ml=round(float(lesion.sum()) * p.pixel_mm**2 * p.slice_mm / 1000, 2),
        volumes=dict(zip(contrasts, volumes, strict=True)),
        lesions=marked((lesion > 0.5).numpy(), p.pixel_mm),
        affine=affine,
    )


def marked(lesion: np.ndarray, pixel_mm: float) -> np.ndarray:
    """uint8, 1 in those lesions of axial slices that are large enough to be marked; lesion: bool (X, Y, Z)."""
    beside = np.zeros((3, 3, 3))
    beside[:, :, 1] = 1  # what touches on the slice is one piece
    pieces, _ = ndimage.label(lesion, beside)
    large = np.bincount(pieces.ravel()) * pixel_mm**2 >= MARKED_MM2
    large[0] = False  # what is no lesion
    return large[pieces].astype(np.uint8)
