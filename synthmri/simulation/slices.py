"""Random slices of random heads, each with the words that say what it shows."""

import math
from typing import NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from synthmri.params import Section
from synthmri.simulation import heads, lesions, scanner
from synthmri.simulation.atlas import Atlas
from synthmri.simulation.heads import CENTRE_MM, Range, ordered, uniform
from synthmri.simulation.tissues import TISSUES

# Image axes of each plane in world axes: (down the rows, along the columns, out of the slice). Radiological: the
# patient's left is on the right of the image; a sagittal slice looks to the left.
PLANES = {
    "axial": ((0, -1, 0), (-1, 0, 0), (0, 0, -1)),
    "coronal": ((0, 0, -1), (-1, 0, 0), (0, -1, 0)),
    "sagittal": ((0, 0, -1), (0, -1, 0), (1, 0, 0)),
}
BRAIN = ("gm", "wm", "deep", "csf", "lesion", "oedema", "glioma", "tumour", "necrosis", "artery", "vein")
_MASS = [TISSUES.index(t) for t in ("glioma", "tumour", "necrosis")]
_COARSE = 4  # pixels
_THIN_MM = 3.0
VISIBLE_MM2 = {"lesions": 12.0, "tumour": 40.0}  # area from which a slice is said to show one


class Slices(Section):
    """What is drawn, and of what: sections `pretrain.*.slices`. Ranges as in Anatomy."""

    anatomy: heads.Anatomy
    scanner: scanner.Scanner
    planes: dict[str, float] = Field(description="share of each plane")
    tumours: float = Field(ge=0, le=1, description="share of heads with a mass")
    stripped: float = Field(ge=0, le=1, description="share of slices that show the brain alone")
    masked: float = Field(ge=0, le=1, description="share of slices whose background is black, without noise")
    depth_mm: Range = Field(description="of axial slices below the vertex; others lie anywhere in the brain")
    slice_mm: Range = Field(description="thickness")
    field_of_view_mm: Range
    off_centre_mm: float = Field(ge=0, description="how far beside the head's centre a slice's centre may lie")
    levels: int = Field(ge=1, le=16, description="slices of each head")
    views: int = Field(ge=1, le=5, description="contrasts of each slice")

    @field_validator("depth_mm", "slice_mm", "field_of_view_mm")
    @classmethod
    def _range(cls, value: Range) -> Range:
        return ordered(value)

    @field_validator("planes")
    @classmethod
    def _planes(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or set(value) - set(PLANES) or min(value.values()) < 0 or not sum(value.values()):
            raise ValueError(f"shares, at least 0, of {', '.join(PLANES)}; not {value}")
        return value


class Batch(NamedTuple):
    """images: (B, S, S) float32 in [0, 1]. table: of each its contrast, plane, depth_mm (as preprocessing counts it),
    label ("none", "lesions", "tumour" or a kind of tumour) and head, its number within the batch."""

    images: torch.Tensor
    table: pd.DataFrame


def plane_points(centre_mm: torch.Tensor, plane: str, pixel_mm: float, size: int) -> torch.Tensor:
    """Scanner coordinates (size, size, 3) mm of a square slice about `centre_mm` (3,)."""
    down, along, _ = centre_mm.new_tensor(PLANES[plane])
    step = torch.arange(size, dtype=centre_mm.dtype, device=centre_mm.device) - (size - 1) / 2
    rows, columns = torch.meshgrid(step, step, indexing="ij")
    return centre_mm + pixel_mm * (rows[..., None] * down + columns[..., None] * along)


def seen(atlas: Atlas, head: heads.Head, field: torch.Tensor, points: torch.Tensor, normal, slice_mm: float):
    """Tissue fractions (T, S * S) of a slice `slice_mm` thick about points (S, S, 3) mm.

    Four neighbouring points look at four depths of the slice, twice as many if it is thick, and scanner.acquire
    averages them: two or three planes through all of it would show as double contours. What surely is air, by every
    fourth point, is not looked at.
    """
    coarse = points[::_COARSE, ::_COARSE]
    air = heads.skin_mm(atlas, head, heads.to_atlas(head, field, coarse.reshape(-1, 3))).reshape(coarse.shape[:2])
    near = F.max_pool2d((air < 12).float()[None, None], 3, stride=1, padding=1)
    near = F.interpolate(near, size=points.shape[:2]).flatten().nonzero()[:, 0]
    depths = points.new_tensor([[0.125, 0.625], [0.875, 0.375]]).repeat([-(-side // 2) for side in points.shape[:2]])
    depths = depths[: points.shape[0], : points.shape[1]].reshape(-1, 1)[near]
    axis, points = points.new_tensor(normal), points.reshape(-1, 3)
    out = points.new_zeros(len(TISSUES), len(points))
    out[TISSUES.index("air")] = 1
    if len(near):
        count = 1 if slice_mm <= _THIN_MM else 2
        total = 0
        for k in range(count):
            shift = slice_mm * ((depths + k) / count - 0.5)
            at = heads.to_atlas(head, field, points[near] + shift * axis)
            total = total + heads.tissue_fractions(atlas, head, at) / count
        out.index_copy_(1, near, total)
    return out


def draw(atlas: Atlas, p: Slices, n: int, size: int, generator: torch.Generator) -> Batch:
    """`n` slices of size x size pixels; all random numbers come from `generator` (CPU), the rest runs where `atlas` is.

    Every head serves p.levels slices, and every slice p.views contrasts, some of them mirrored: what a head consists of
    takes longer than an image of it.
    """
    images, rows, drawn = [], [], 0
    while len(rows) < n:
        masses = int(torch.rand((), generator=generator) < p.tumours)
        head = heads.draw(atlas, p.anatomy, generator, masses=masses).to(atlas.tissues.device)
        field = heads.displacement(atlas, head)
        for _ in range(min(p.levels, -(-(n - len(rows)) // p.views))):
            shown, found = _slice(atlas, p, head, field, min(p.views, n - len(rows)), size, generator)
            images.append(shown)
            rows += [row | {"head": drawn} for row in found]
        drawn += 1
    return Batch(torch.cat(images), pd.DataFrame(rows))


def _slice(atlas: Atlas, p: Slices, head: heads.Head, field, views: int, size: int, generator: torch.Generator):
    """One slice in `views` contrasts: (views, size, size), and a row of the table for each."""

    def number(low: float, high: float) -> float:
        return float(uniform((low, high), 1, generator))

    known, device = list(p.scanner.sequences), atlas.tissues.device
    contrasts = [known[i] for i in torch.randperm(len(known), generator=generator)[:views].tolist()]
    views = len(contrasts)
    shares = torch.tensor([p.planes.get(plane, 0.0) for plane in PLANES])
    plane = list(PLANES)[int(torch.multinomial(shares, 1, generator=generator))]
    pixel_mm = number(*p.field_of_view_mm) / size
    slice_mm = math.exp(number(math.log(p.slice_mm[0]), math.log(p.slice_mm[1])))  # thin ones as often as thick ones
    spot, through, beside, shift_mm = number(0, 1), number(0, 1), number(-0.6, 0.6), number(0, 12)
    off = p.off_centre_mm * (2 * torch.rand(3, generator=generator) - 1)
    scans = scanner.draw_scans(p.scanner, contrasts, generator)
    stripped, masked = (torch.rand(views, generator=generator) < share for share in (p.stripped, p.masked))
    flip = torch.rand(views, generator=generator) < 0.5
    ceiling = uniform((0.92, 1.35), views, generator).tolist()
    named = torch.rand(views, generator=generator) < 0.5
    noise = torch.Generator(device).manual_seed(int(torch.randint(2**62, (1,), generator=generator)))

    mass = head.masses[0] if head.masses and through < 0.5 else None  # half of the slices of a mass meet it
    centre, depth_mm = _place(p, head, plane, spot, mass, beside)
    centre = centre + off * (1 - torch.tensor(PLANES[plane][2]).abs())
    if plane == "axial":
        centre[1] += shift_mm  # the further down a volume reaches, the more of the face is in its bounding box
    points = plane_points(centre.to(device), plane, pixel_mm, size)
    fractions = seen(atlas, head, field, points, PLANES[plane][2], slice_mm)
    scans = {key: value.to(device) for key, value in scans.items()}
    clean = scanner.signals(atlas, fractions, scans, points.reshape(-1, 3))
    within = fractions[0] < 0.5
    if stripped.any():
        brain = fractions[[TISSUES.index(t) for t in BRAIN]].sum(0)
        clean[stripped.to(device)] *= (brain > 0.5).to(clean)
    images = scanner.acquire(clean.reshape(views, size, size), scans, pixel_mm, slice_mm, noise)
    images = torch.where(masked.to(device)[:, None, None], images * (fractions[0] < 0.98).reshape(size, size), images)
    images = torch.stack([
        window(image, brain > 0.5 if bare else within, top)
        for image, bare, top in zip(images, stripped.tolist(), ceiling, strict=True)
    ])  # fmt: skip
    if plane != "sagittal":  # which looks to the left
        images = torch.where(flip.to(device)[:, None, None], images.flip(2), images)
    label = visible(fractions, pixel_mm)
    kind = lesions.WORDS.get(head.masses[0].kind, head.masses[0].kind) if head.masses else ""
    return images, [
        {
            "contrast": contrast, "plane": plane, "depth_mm": depth_mm,
            "label": kind if label == "tumour" and contrast == "T1ce" and name else label,
        }
        for contrast, name in zip(contrasts, named.tolist(), strict=True)
    ]  # fmt: skip


def _place(p: Slices, head: heads.Head, plane: str, spot: float, mass, beside: float) -> tuple[torch.Tensor, float]:
    """Centre (3,) mm of a slice, and its depth in mm below the vertex, behind the nose or from the left ear.

    `spot`, from 0 to 1, of the way through the head; or through `mass`, `beside` of its radius from the middle.
    """
    axis = {"sagittal": 0, "coronal": 1, "axial": 2}[plane]
    start = (heads.left_mm, heads.nose_mm, heads.vertex_mm)[axis](head)
    if plane == "axial":
        first, last = start - p.depth_mm[0], start - p.depth_mm[1]
    else:
        first, last = (heads.placed(head, axis, value) for value in ((-62.0, 62.0), (66.0, -98.0))[axis])
    place = first + spot * (last - first)
    if mass is not None:
        middle = heads.placed(head, axis, float(mass.centre[axis]) + beside * mass.radius_mm)
        place = min(max(middle, min(first, last)), max(first, last))
    centre = torch.tensor(CENTRE_MM) + head.offset_mm.cpu()
    if plane != "axial":
        centre[2] = heads.vertex_mm(head) - 100.0  # down to the mouth
    if plane == "sagittal":
        centre[1] += 8.0  # with the nose
    centre[axis] = place
    return centre, abs(place - start)


def window(image: torch.Tensor, head: torch.Tensor, ceiling: float) -> torch.Tensor:
    """Scale an image to [0, 1] as preprocessing would: from percentiles of the head, give or take a volume's rest."""
    values = image.flatten()[head] if int(head.sum()) > 100 else image.flatten()
    values = values[:: max(1, len(values) // 8000)]
    low, high = torch.quantile(values, torch.tensor([0.005, 0.995], device=values.device))
    return ((image - low) / (high * ceiling - low).clamp_min(0.3)).clamp(0, 1)


def visible(fractions: torch.Tensor, pixel_mm: float) -> str:
    """What a slice of tissue fractions (T, P) shows: "tumour" or else "lesions", if large enough; or "none"."""
    area = fractions.sum(1) * pixel_mm**2
    if float(area[_MASS].sum()) > VISIBLE_MM2["tumour"]:
        return "tumour"
    return "lesions" if float(area[TISSUES.index("lesion")]) > VISIBLE_MM2["lesions"] else "none"
