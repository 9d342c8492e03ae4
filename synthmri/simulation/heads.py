"""Simulated heads: an average brain that is folded anew, deformed, and laid into a drawn head.

Everything is torch, and every random number is drawn apart from being applied, so that the same code makes the volumes
of the simulated cohort and the endless slices that models are pretrained on, on a CPU or a GPU.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from synthmri.params import Section
from synthmri.simulation import atlas as maps
from synthmri.simulation import lesions, shapes
from synthmri.simulation.atlas import BOX_MM, Atlas, sample, sample_tile
from synthmri.simulation.tissues import TISSUES

Range = tuple[float, float]
CENTRE_MM = (0.0, -18.0, 8.0)  # what heads are scaled and turned about
_KNOT_MM = 10.0  # spacing of the deformation's knots
_INNER_TOP_MM = 82.0  # z of the top of the inner skull in the atlas, over the crown; a test holds it there
_NOSE_MM, _EAR_MM = 113.0, 88.0  # y of the tip of the nose, |x| of the outermost part of the ears
_SKIN_MM = 1.8
_PERSON = (0.95, 0.98, 0.93)  # size of most people relative to the atlas, along x, y, z
CORTEX_MM = 2.6  # thickness of the grey matter of new folds (Fischl and Dale 2000, doi 10.1073/pnas.200033797)


def ordered(value: Range) -> Range:
    """The range itself. Raises ValueError where its lower end is above the upper one."""
    if value[0] > value[1]:
        raise ValueError(f"the lower end {value[0]} is above the upper end {value[1]}; swap them")
    return value


class Anatomy(Section):
    """How heads differ: every value is a range [low, high] from which a subject is drawn uniformly."""

    scale: Range = Field(description="size of the head relative to the atlas")
    shape_mm: Range = Field(description="standard deviation of the smooth deformation")
    ventricles_mm: Range = Field(description="how far the ventricles' walls move out (or in, below 0)")
    sulci: Range = Field(description="weight of CSF against grey matter where they meet; 1 leaves the atlas as it is")
    lesions: Range = Field(description="number of white-matter lesions")
    tilt_deg: Range = Field(description="rotation about each axis; nodding up to twice as far")
    offset_mm: Range = Field(description="shift along each axis")

    @field_validator("*")
    @classmethod
    def _range(cls, value: Range) -> Range:
        return ordered(value)


@dataclass
class Head:
    """Everything random about one head. Single numbers are floats, so that only maps move between devices.

    velocity: (1, 3, Z, Y, X) mm at the deformation's knots; scale, tilt_deg, offset_mm: (3,); fold_turn: (3, 3) and
    fold_offset, noise_offset: (3,), where the periodic tiles are laid; `kept`: how much of the atlas's folds is kept.
    """

    velocity: torch.Tensor
    scale: torch.Tensor
    tilt_deg: torch.Tensor
    offset_mm: torch.Tensor
    ventricles_mm: float
    sulci: float
    sharp: float
    bone_mm: float
    fat_mm: float
    muscle_mm: float
    fold_mm: float
    fold_depth_mm: float
    fold_turn: torch.Tensor
    fold_offset: torch.Tensor
    noise_offset: torch.Tensor
    kept: float
    ears: shapes.Parts
    outer: shapes.Parts
    inner: shapes.Parts
    lesions: shapes.Parts
    masses: list[lesions.Mass]

    def to(self, device) -> "Head":
        """With all its tensors and shapes on a device."""
        values = {k: v.to(device) if hasattr(v, "to") else v for k, v in vars(self).items()}
        return Head(**values)


def uniform(low_high: Range, n: int, generator: torch.Generator) -> torch.Tensor:
    """(n,) uniform numbers in [low, high]."""
    low, high = low_high
    return low + (high - low) * torch.rand(n, generator=generator)


def draw(atlas: Atlas, ranges: Anatomy, generator: torch.Generator, *, masses: int = 0) -> Head:
    """One head with `masses` tumours, on the CPU; all random numbers come from the generator."""

    def number(low: float, high: float) -> float:
        return float(uniform((low, high), 1, generator))

    knots = [round((high - low) / _KNOT_MM) + 1 for low, high in reversed(BOX_MM)]
    coarse = torch.randn(1, 3, *[max(2, k // 5) for k in knots], generator=generator)
    fine = torch.randn(1, 3, *knots, generator=generator)
    # Broad differences of shape, and finer ones that move single gyri.
    velocity = F.interpolate(coarse, size=knots, mode="trilinear", align_corners=True) + 0.25 * fine
    tilt = uniform(ranges.tilt_deg, 3, generator)
    tilt[0] *= 2  # heads nod more than they lean
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator))[0]
    return Head(
        velocity=velocity * number(*ranges.shape_mm),
        # The atlas is larger than most people, in height above all (Lancaster 2007, doi 10.1002/hbm.20345).
        scale=number(*ranges.scale) * (1 + 0.03 * torch.randn(3, generator=generator)) * torch.tensor(_PERSON),
        tilt_deg=tilt,
        offset_mm=uniform(ranges.offset_mm, 3, generator),
        ventricles_mm=number(*ranges.ventricles_mm),
        sulci=number(*ranges.sulci),
        sharp=number(1.4, 2.6),
        bone_mm=number(3.8, 7.0),
        fat_mm=number(1.5, 5.5),
        muscle_mm=number(5.0, 11.0),
        fold_mm=number(16.0, 23.0),
        fold_depth_mm=number(10.0, 16.0),
        fold_turn=turn,
        fold_offset=maps.TILE * torch.rand(3, generator=generator),
        noise_offset=maps.TILE * torch.rand(3, generator=generator),
        kept=number(-1.6, 1.2),
        ears=shapes.draw(shapes.EARS, generator),
        outer=shapes.draw(shapes.OUTER, generator),
        inner=shapes.draw(shapes.INNER, generator),
        lesions=lesions.draw_lesions(atlas, round(number(*ranges.lesions)), generator),
        masses=[lesions.draw_mass(atlas, generator) for _ in range(masses)],
    )


def vertex_mm(head: Head) -> float:
    """z in mm of the top of the scalp, tilt and deformation left aside."""
    return placed(head, 2, _INNER_TOP_MM - 1.2 * (1.4 - head.sulci) + head.bone_mm + head.fat_mm + _SKIN_MM)


def nose_mm(head: Head) -> float:
    """y in mm of the tip of the nose, tilt and deformation left aside."""
    return placed(head, 1, _NOSE_MM)


def left_mm(head: Head) -> float:
    """x in mm of the outermost part of the left ear, tilt and deformation left aside."""
    return placed(head, 0, -_EAR_MM)


def placed(head: Head, axis: int, value: float) -> float:
    """Where a plane across an axis of the atlas, at `value` mm, lies in the scanner but for tilt and deformation."""
    middle = CENTRE_MM[axis]
    return middle + float(head.scale[axis]) * (value - middle) + float(head.offset_mm[axis])


def displacement(atlas: Atlas, head: Head) -> torch.Tensor:
    """The deformation at its knots, (1, 3, Z, Y, X) mm, head -> atlas: the exponential of a stationary velocity.

    Scaling and squaring (Arsigny 2006, doi 10.1007/11866565_113): invertible however large the velocity.
    """
    shape = head.velocity.shape
    knots = knot_points(head.velocity)
    distance, *normal = sample(atlas.ventricles, BOX_MM, knots.reshape(-1, 3)).reshape(4, *shape[2:])
    # Moving the walls out means to look further in: against the outward normal, fading away from the wall.
    wall = -torch.stack(normal) * torch.exp(-((distance / 14.0) ** 2))
    steps = 5
    field = (head.velocity + head.ventricles_mm * wall) / 2**steps
    for _ in range(steps):
        moved = knots + field[0].permute(1, 2, 3, 0)
        field = field + sample(field, BOX_MM, moved.reshape(-1, 3)).reshape(shape)
    return _smooth(field, 2)


def knot_points(velocity: torch.Tensor) -> torch.Tensor:
    """(Z, Y, X, 3) mm: where the knots of the deformation lie."""
    axes = [
        torch.linspace(low, high, count, device=velocity.device)
        for (low, high), count in zip(BOX_MM, reversed(velocity.shape[2:]), strict=True)
    ]
    z, y, x = torch.meshgrid(axes[2], axes[1], axes[0], indexing="ij")
    return torch.stack([x, y, z], dim=-1)


def _smooth(knots: torch.Tensor, factor: int) -> torch.Tensor:
    """Knots on a finer grid without the creases of linear interpolation (twice a box: a quadratic spline)."""
    size = [(k - 1) * factor + 1 for k in knots.shape[2:]]
    fine = F.interpolate(knots, size=size, mode="trilinear", align_corners=True)
    fine = F.pad(fine, [factor // 2] * 6, mode="replicate")
    for axis in range(3):
        width = [2 * (factor // 2) + 1 if axis == i else 1 for i in range(3)]
        fine = F.avg_pool3d(fine, width, stride=1)
    return fine


def rotation(angles_deg: torch.Tensor) -> torch.Tensor:
    """(3,) angles about x, y, z -> (3, 3)."""
    a, b, c = torch.deg2rad(angles_deg).unbind()
    one, zero = torch.ones_like(a), torch.zeros_like(a)

    def matrix(*rows):
        return torch.stack([torch.stack(row) for row in rows])

    about_x = matrix((one, zero, zero), (zero, a.cos(), -a.sin()), (zero, a.sin(), a.cos()))
    about_y = matrix((b.cos(), zero, b.sin()), (zero, one, zero), (-b.sin(), zero, b.cos()))
    about_z = matrix((c.cos(), -c.sin(), zero), (c.sin(), c.cos(), zero), (zero, zero, one))
    return about_z @ about_y @ about_x


def to_atlas(head: Head, field: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Scanner coordinates (P, 3) mm -> atlas coordinates (P, 3) mm: undo pose and size, then deform."""
    centre = points.new_tensor(CENTRE_MM)
    turned = (points - head.offset_mm - centre) @ rotation(head.tilt_deg)
    local = turned / head.scale + centre
    return local + sample(field, BOX_MM, local).T


def _layers(atlas: Atlas, head: Head, at: torch.Tensor):
    """Of points (P, 3): broad noise (4, P), and in mm, each (P,): the distance to the inner skull, the thickness of
    bone and of fat, and the distance to the skin of the head and face together."""
    skull, face = sample(atlas.outside, BOX_MM, at)
    broad = sample_tile(atlas.noise, at / 14.0 + head.noise_offset)
    skull = skull + 0.3 * broad[0] + 1.2 * (1.4 - head.sulci)  # the brain fills what atrophy leaves
    x, y, z = at.unbind(1)
    low = torch.sigmoid((12 - z) / 8)  # temples and neck, where muscles lie on the bone
    muscle_mm = head.muscle_mm * low * torch.sigmoid((x.abs() - 50) / 6) * torch.sigmoid((y + 62) / 10)
    bone_mm = head.bone_mm * (1 + 0.1 * broad[1]) * (1 - 0.35 * low)
    fat_mm = head.fat_mm * (1 + 0.12 * broad[2])
    scalp = skull - (bone_mm + muscle_mm + fat_mm + _SKIN_MM)
    skin = -4.0 * torch.logaddexp(-scalp / 4.0, -(face + 0.5 * broad[3]) / 4.0)  # smooth where they meet
    return broad, skull, bone_mm, fat_mm, skin


def skin_mm(atlas: Atlas, head: Head, at: torch.Tensor) -> torch.Tensor:
    """Distance (P,) in mm of atlas coordinates (P, 3) to the skin, negative within the head; ears stand out of it."""
    return _layers(atlas, head, at)[-1]


def tissue_fractions(atlas: Atlas, head: Head, at: torch.Tensor) -> torch.Tensor:
    """Fractions of TISSUES at atlas coordinates `at` (P, 3) mm -> (len(TISSUES), P); they sum to 1."""
    broad, skull, bone_mm, fat_mm, skin = _layers(atlas, head, at)
    out = at.new_zeros(len(TISSUES) + 2, len(at))
    inner = torch.sigmoid(-skull / 0.4)
    inside, around = (skull < 2.0).nonzero()[:, 0], (skull > -2.0).nonzero()[:, 0]
    if len(inside):
        within = brain(atlas, head, at[inside], skull[inside], broad[:, inside]) * inner[inside]
        out[: len(TISSUES)].index_add_(1, inside, within)
    if len(around):
        layers = (skull[around], bone_mm[around], skin[around], fat_mm[around])
        out.index_add_(1, around, _outside(atlas, head, at[around], layers, 1 - inner[around]))
    out = shapes.mixtures(out, atlas.noise, at, head.noise_offset)
    out[TISSUES.index("air")] += (1 - out.sum(0)).clamp_min(0)
    return out


def _outside(atlas: Atlas, head: Head, at, layers, room) -> torch.Tensor:
    """What lies between the inner skull and the air, (rows, P): drawn parts over layers by depth."""
    skull, bone_mm, skin, fat_mm = layers
    out = at.new_zeros(len(TISSUES) + 2, len(at))
    wobble = sample_tile(atlas.noise, at / 6.0 + head.noise_offset)

    def below(value, edge):
        return torch.sigmoid((edge - value) / 0.4)

    body = below(skin, 0.0)
    bent = at + 0.9 * wobble[:3].T
    room = shapes.paint(head.ears, bent, room, out)
    left = shapes.paint(head.outer, bent, room * below(skin, -0.8), out) + room * (1 - below(skin, -0.8))
    under_skin, under_fat = below(skin, -_SKIN_MM), below(skin, -_SKIN_MM - fat_mm)
    # The skull is not bared where the scalp is thin; below, fat and muscle fill what no part has taken.
    bone = below(skull, bone_mm)
    diploe = (below(skull, bone_mm - 1.7) - below(skull, 1.7)).clamp_min(0) * torch.sigmoid(2 + 2 * wobble[3])
    dura = below(skull, 0.9)
    row = TISSUES.index
    out[row("dura")] += left * dura
    out[row("marrow")] += left * diploe * (1 - dura)
    out[row("bone")] += left * (bone - diploe).clamp_min(0) * (1 - dura)
    soft = left * (1 - bone) * (1 - dura)
    out[row("skin")] += soft * (body - under_skin).clamp_min(0)
    scalp = soft * (under_skin - under_fat).clamp_min(0)
    # Veins of the scalp, and what else there is in its fat.
    strands = torch.sigmoid(5 * (wobble[1] - 1.0)) * 0.6
    vessel = torch.sigmoid((1.1 - torch.hypot(wobble[0], wobble[2]) * 6) / 0.3)
    out[row("fat")] += scalp * (1 - strands) * (1 - vessel)
    out[row("muscle")] += scalp * strands * (1 - vessel)
    out[row("vein")] += scalp * vessel
    cranial = torch.sigmoid((bone_mm + 13 - skull) / 2.5)
    fine = sample_tile(atlas.noise, at / at.new_tensor([2.5, 2.5, 6.0]) + head.noise_offset)[0]
    streaks = 0.2 + 0.75 * torch.sigmoid(5 * (0.4 * wobble[3] + 0.8 * fine + 0.4 + 0.9 * cranial))
    out[row("muscle")] += soft * under_fat * streaks
    out[row("fat")] += soft * under_fat * (1 - streaks)
    return out


def brain(atlas: Atlas, head: Head, at, skull, broad) -> torch.Tensor:
    """Fractions (len(TISSUES), P) within the inner skull; skull: (P,) mm to it, broad: (4, P) noise."""
    row = TISSUES.index
    origin = at
    loose = torch.sigmoid((-skull - 3.0) / 2.0)  # bone holds what lies next to it
    for mass in head.masses:
        at = lesions.push(mass, at, loose)
    # Single gyri lie elsewhere in everybody; the outline of the head knows nothing of it.
    at = at + 2.2 * loose[:, None] * sample_tile(atlas.noise, at / 11.0 + head.noise_offset)[1:].T
    gm, wm = sample(atlas.tissues, atlas.tissues_box, at, outside="zeros")
    # The average brain is soft at its borders; a power of the probabilities makes one person's again.
    csf = (1 - gm - wm).clamp(0, 1)
    parts = torch.stack([gm, wm, csf * head.sulci]).clamp_min(1e-4) ** head.sharp
    parts = parts / parts.sum(0)
    folded, share = _folds(atlas, head, at, broad)
    gm, wm, csf = parts + share * (folded - parts)
    gm, wm, csf = _foliate(atlas, head, at, gm, wm, csf)

    out = at.new_zeros(len(TISSUES), len(at))
    x, y, z = at.unbind(1)
    ganglia = ((x.abs() - 20) / 15) ** 2 + ((y - 0) / 24) ** 2 + ((z - 4) / 15) ** 2
    deep = gm * torch.sigmoid((1 - ganglia) * 6)
    out[row("gm")], out[row("wm")], out[row("csf")], out[row("deep")] = gm - deep, wm, csf, deep
    _membranes(atlas, head, at, skull, out)

    if head.lesions.rows:
        spots = at.new_zeros(len(TISSUES), len(at))
        rough = sample_tile(atlas.noise, at / 3.0 + head.noise_offset)[:3].T
        shapes.paint(head.lesions, at + 0.7 * rough, torch.ones_like(wm), spots)
        spot = spots[row("lesion")] * (wm + 0.3 * gm)
        out *= 1 - spot
        out[row("lesion")] += spot
    for mass in head.masses:
        lesions.grow(atlas, mass, origin, torch.sigmoid(-skull / 0.5), out)
    return out


def _folds(atlas: Atlas, head: Head, at, broad) -> tuple[torch.Tensor, torch.Tensor]:
    """New folds: fractions (3, P) of grey, white, fluid, and the share (P,) in which they replace the atlas's.

    Sulci are sheets of noise that is nearly constant along the normal of the smooth brain, so that they run inwards
    from its surface, as deep as noise lets them; the cortex is what lies within its thickness of surface or sheet.
    """
    depth, *normal = sample(atlas.inside, BOX_MM, at)
    shallow = depth.clamp(0, 30)
    outwards = at + 0.7 * shallow[:, None] * torch.stack(normal, 1)
    outwards = outwards + 300 * (at[:, :1] > 0)  # each hemisphere has folds of its own
    cell_mm = head.fold_mm / maps.FOLD_WAVE
    sheet, floor = sample_tile(atlas.folds, (outwards @ head.fold_turn) / cell_mm + head.fold_offset)
    deep_mm = head.fold_depth_mm + 4.0 * floor
    from_sheet = torch.hypot(sheet * cell_mm, (depth - deep_mm).clamp_min(0))
    gap_mm = 0.7 * head.sulci * (0.75 - shallow / 17 + 0.45 * broad[1])
    pial = torch.minimum(depth - 0.4 * head.sulci, from_sheet - gap_mm)
    csf = torch.sigmoid(-pial / 0.35)
    wm = torch.sigmoid((pial - CORTEX_MM * (1 + 0.1 * broad[2])) / 0.35)
    # Kept: what lies deep, the insula, the inner temporal lobe, and what the noise leaves of the rest.
    x, y, z = at.unbind(1)
    insula = ((x.abs() - 38) / 15) ** 2 + ((y - 2) / 30) ** 2 + ((z - 2) / 17) ** 2
    temporal = ((x.abs() - 24) / 15) ** 2 + ((y + 14) / 32) ** 2 + ((z + 22) / 14) ** 2
    callosum = (x / 20) ** 2 + ((y + 6) / 50) ** 2 + ((z - 4) / 27) ** 2
    spared = torch.minimum(torch.minimum(insula, temporal), torch.minimum(callosum, (x / 11) ** 2))
    share = torch.sigmoid((17.5 - depth) / 1.2) * torch.sigmoid((spared - 1) * 5)
    share = share * torch.sigmoid((z - maps.tentorium_mm(x, y) - 1.5) / 1.0) * torch.sigmoid((depth + 3) / 1.0)
    share = share * torch.sigmoid(4 * (broad[3] - head.kept))
    return torch.stack([(1 - csf - wm).clamp_min(0), wm * (1 - csf), csf]), share


def _foliate(atlas: Atlas, head: Head, at, gm, wm, csf):
    """Fine leaves of the cerebellum: sheets that turn about the axis of the fourth ventricle, closer than the atlas."""
    x, y, z = at.unbind(1)
    below = torch.sigmoid((maps.tentorium_mm(x, y) - z) / 1.5) * torch.sigmoid((-46 - y) / 2.5)
    back, up = -(y + 40) - 0.006 * x**2, z + 30
    radius = torch.hypot(back, up)
    bent = sample_tile(atlas.noise, at / 8.0 + head.noise_offset)
    wave = torch.cos(torch.atan2(up, back.clamp_min(1.0)) * (0.75 * radius + 28) + 1.6 * bent[0])
    leaf = below * torch.sigmoid((radius - 18 + 4 * bent[1]) / 4) * torch.sigmoid(1 + 1.5 * bent[2])
    cleft = leaf * torch.sigmoid((wave - 0.75) * 8) * gm * 0.35 * min(head.sulci, 1.3)
    white = leaf * torch.sigmoid((-wave - 0.55) * 7) * gm * 0.5
    return gm - cleft - white, wm + white, csf + cleft


def _membranes(atlas: Atlas, head: Head, at, skull, out) -> None:
    """Falx, tent, venous sinuses and vessels, laid into the fluid between brain and skull. In place."""
    row = TISSUES.index
    x, y, z = at.unbind(1)
    fluid = out[row("csf")]
    noise = sample_tile(atlas.noise, at / 7.0 + head.noise_offset)
    tent = maps.tentorium_mm(x, y)
    middle = x + 0.8 * noise[0]
    above = torch.sigmoid((z - tent) / 1.0)
    # The sagittal sinus: a triangle under the skull, where the falx begins.
    sagittal = torch.sigmoid((5.0 + skull * 0.8 - middle.abs()) / 0.6) * torch.sigmoid((skull + 8) / 0.8)
    sagittal = sagittal * above * torch.sigmoid((z + 12 - 0.3 * y) / 4) * torch.sigmoid((40 - y) / 20)
    # The transverse sinuses: along the edge of the tent.
    transverse = torch.sigmoid((3.6 - torch.hypot(z - tent + 2, skull + 3.5)) / 0.6) * torch.sigmoid((-30 - y) / 6)
    vein = torch.maximum(sagittal, transverse)
    falx = torch.sigmoid((0.7 - middle.abs()) / 0.3) * above * _above_callosum(y, z)
    sheet = torch.sigmoid((0.8 - (z - tent).abs()) / 0.3) * torch.sigmoid((-34 - y + 0.2 * x.abs()) / 3)
    dura = torch.maximum(falx, sheet) * fluid
    for name, amount in (("vein", vein * (fluid + 0.8 * (1 - fluid))), ("dura", dura * (1 - vein))):
        out *= 1 - amount
        out[row(name)] += amount
    # Vessels: curves where two noises are zero at once, in the fluid and on the cortex.
    line_mm = torch.hypot(noise[1], noise[2]) * 7.0
    vessel = torch.sigmoid((1.2 - line_mm) / 0.3)
    vessel = 0.8 * vessel * torch.sigmoid((skull + 26) / 3)
    artery = torch.sigmoid(noise[3] * 8)
    for name, share in (("csf", 1.0), ("gm", 0.5)):
        taken = share * vessel * out[row(name)]
        out[row(name)] -= taken
        out[row("artery")] += taken * artery
        out[row("vein")] += taken * (1 - artery)
    painted = at.new_zeros(len(TISSUES), len(at))
    left = shapes.paint(head.inner, at + 0.5 * noise[:3].T, out[row("csf")], painted)
    out[row("csf")] = left
    out += painted


def _above_callosum(y, z):
    """1 where the falx reaches, 0 nearer to the middle of the brain."""
    return torch.sigmoid((torch.hypot((y + 14) * 0.8, z - 2) - 50) / 2)
