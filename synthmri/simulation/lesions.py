"""Lesions of the white matter, and masses with oedema, mass effect and enhancement."""

from typing import NamedTuple

import torch

from synthmri.simulation import atlas as maps
from synthmri.simulation import shapes
from synthmri.simulation.tissues import TISSUES

KINDS = ("glioma", "low-grade glioma", "meningioma", "pituitary", "metastasis")
WORDS = {"low-grade glioma": "glioma", "metastasis": "tumour"}  # kinds that prompts name otherwise


class Mass(NamedTuple):
    """One mass in the atlas: centre (3,) mm, a matrix (3, 3) that makes it the unit ball, radius in mm, noise offset
    (3,) in cells; oedema: how far it reaches, in radii; core: share of the radius that is dead; bright: enhancing."""

    kind: str
    centre: torch.Tensor
    matrix: torch.Tensor
    radius_mm: float
    offset: torch.Tensor
    oedema: float
    core: float
    bright: bool


def draw_lesions(atlas: maps.Atlas, count: int, generator: torch.Generator) -> shapes.Parts:
    """`count` lesions: beside the ventricles (most, and long), below the cortex, or points anywhere in white matter."""
    kind = torch.rand(count, generator=generator)
    near, far = (
        sites.cpu()[torch.randint(len(sites), (count,), generator=generator)]
        for sites in (atlas.white_sites, atlas.rim_sites)
    )
    centres = torch.where((kind < 0.6)[:, None], near, far)
    size = 1.6 + 4.2 * torch.rand(count, generator=generator) ** 2
    size = torch.where(kind > 0.8, 1.0 + 0.9 * torch.rand(count, generator=generator), size)
    radii = size[:, None] * torch.exp(0.25 * torch.randn(count, 3, generator=generator))
    angles = 90 * torch.randn(count, 2, generator=generator)
    rows = [TISSUES.index("lesion")] * count
    return shapes.ellipsoids(rows, centres.float(), radii, shapes.turn(*angles.unbind(1)))


def draw_mass(atlas: maps.Atlas, generator: torch.Generator) -> Mass:
    """One mass: its kind decides where it grows and of what it consists."""
    pick = torch.rand(8, generator=generator).tolist()
    kind = KINDS[min(int(pick[0] * 4.4), 4)]
    if kind == "pituitary":
        centre = torch.tensor([0.0, 5.0, -33.0]) + 2.0 * torch.randn(3, generator=generator)
        radius = 5 + 11 * pick[1]
        centre[2] += 0.6 * radius
    else:
        sites = {"meningioma": atlas.hull_sites, "metastasis": atlas.rim_sites}.get(kind)
        if sites is None:
            sites = atlas.rim_sites if pick[2] < 0.6 else atlas.white_sites
        centre = sites.cpu()[int(torch.randint(len(sites), (1,), generator=generator))].float()
        low, high = {"meningioma": (7, 24), "metastasis": (4, 14)}.get(kind, (9, 28))
        radius = low + (high - low) * pick[1]
        if kind == "meningioma":  # it hangs on the dura and grows inwards
            inwards = torch.tensor([0.0, -18.0, 20.0]) - centre
            centre = centre + 0.75 * radius * inwards / inwards.norm()
    stretch = torch.exp(0.18 * torch.randn(3, generator=generator))
    angles = 90 * torch.randn(2, 1, generator=generator)
    matrix = shapes.turn(angles[0], angles[1])[0].T / stretch[:, None]
    return Mass(
        kind, centre, matrix / radius, radius, maps.TILE * torch.rand(3, generator=generator),
        oedema={"glioma": 1.25 + 0.7 * pick[3], "low-grade glioma": 1.0 + 0.25 * pick[3], "metastasis": 1.3 + pick[3],
                "meningioma": 1.0 + 0.7 * max(0.0, pick[3] - 0.4), "pituitary": 0.0}[kind],
        core={"glioma": 0.35 + 0.5 * pick[4], "low-grade glioma": max(0.0, pick[4] - 0.6),
              "metastasis": max(0.0, 1.4 * pick[4] - 0.6)}.get(kind, max(0.0, pick[4] - 0.75)),
        bright=kind != "low-grade glioma" or pick[5] < 0.15,
    )  # fmt: skip


def _distance(atlas: maps.Atlas, mass: Mass, at: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Distance of points (P, 3) from the centre in radii, made irregular, and the noise that did it (4, P)."""
    noise = maps.sample_tile(atlas.noise, at / (0.28 * mass.radius_mm + 2.5) + mass.offset.to(at))
    rough = 0.06 if mass.kind in ("meningioma", "pituitary") else 0.14
    away = ((at - mass.centre.to(at)) @ mass.matrix.to(at).T).norm(dim=1)
    return away * (1 + rough * noise[0]), noise


def push(mass: Mass, at: torch.Tensor, give: torch.Tensor) -> torch.Tensor:
    """Where the tissue at points (P, 3) mm came from, before the mass grew; give: (P,) 0 to 1, 0 where bone holds.

    A growing ball that compresses nothing moves a shell of radius s to (s^3 + R^3)^(1/3); further out it is absorbed.
    """
    away = at - mass.centre.to(at)
    r = away.norm(dim=1).clamp_min(1e-3)
    grown = 0.72 * mass.radius_mm
    came = (r**3 - grown**3).clamp_min(0).pow(1 / 3)
    moved = (r - came) * torch.exp(-((r - grown).clamp_min(0) / 22.0)) * give
    return at - away / r[:, None] * moved[:, None]


def grow(atlas: maps.Atlas, mass: Mass, at: torch.Tensor, inner: torch.Tensor, out: torch.Tensor) -> None:
    """Replace, in fractions `out` (T, P), tissue within the skull (`inner` (P,) 0 to 1) by the mass. In place."""
    reach = 2.3 * mass.radius_mm * max(mass.oedema, 1.0)
    near = ((at - mass.centre.to(at)).abs() < reach).all(1).nonzero()[:, 0]
    if not len(near):
        return
    t, noise = _distance(atlas, mass, at[near])
    edge = 2.0 if mass.kind == "low-grade glioma" else 0.7  # mm
    softness = edge / mass.radius_mm
    part = out[:, near]
    inside = torch.sigmoid((1 - t) / softness) * inner[near]
    core = torch.sigmoid((mass.core - t * (1 + 0.25 * noise[1])) / (0.8 / mass.radius_mm)) * inside
    row = TISSUES.index
    if mass.oedema > 1:  # it spreads along white matter, in fingers
        spread = torch.sigmoid((mass.oedema - t * (1 - 0.22 * noise[2])) * mass.radius_mm / 2.0)
        for name, share in (("wm", 0.9), ("gm", 0.2), ("deep", 0.3)):
            swollen = part[row(name)] * spread * share
            part[row(name)] -= swollen
            part[row("oedema")] += swollen
    part *= 1 - inside
    solid = inside - core
    patchy = torch.sigmoid((noise[3] + 0.6) * 3) if mass.kind == "glioma" else torch.ones_like(t)
    name = "tumour" if mass.bright else "glioma"
    part[row(name)] += solid * patchy
    part[row("glioma")] += solid * (1 - patchy)
    part[row("necrosis")] += core
    out[:, near] = part
