"""The scanner: signal equations, receive field, point spread, noise, and the filters of the console."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator

from synthmri.params import Section
from synthmri.simulation.atlas import BOX_MM, TILE, Atlas, sample, sample_tile
from synthmri.simulation.heads import Range, ordered, uniform
from synthmri.simulation.tissues import FATTY, RELAXATION, TISSUES


class Sequence(Section):
    """Timing of a spin echo (ti_ms = [0, 0]) or an inversion recovery sequence, in milliseconds.

    fat: factor on the signal of fat and marrow, below 1 where it is suppressed; contrast_medium: whether one was given.
    """

    tr_ms: Range
    te_ms: Range
    ti_ms: Range = (0.0, 0.0)
    fat: Range = (1.0, 1.0)
    contrast_medium: bool = False

    @field_validator("tr_ms", "te_ms", "ti_ms")
    @classmethod
    def _range(cls, value: Range) -> Range:
        if value[0] < 0:
            raise ValueError(f"a time is at least 0, not {value[0]}")
        return ordered(value)

    @field_validator("fat")
    @classmethod
    def _factor(cls, value: Range) -> Range:
        if value[0] <= 0:
            raise ValueError(f"above 0, not {value[0]}")
        return ordered(value)


class Scanner(Section):
    """How images of one head differ: ranges as in Anatomy."""

    noise: Range = Field(description="standard deviation of the noise in each channel, relative to white matter")
    bias: Range = Field(description="standard deviation of the log of the receive field")
    blur_mm: Range = Field(description="standard deviation of the in-plane point spread")
    sharpen: Range = Field(description="weight of the console's edge enhancement; below 0 it smooths")
    texture: Range = Field(description="relative standard deviation of tissue signal over 1 to 5 mm")
    relaxation: Range = Field(description="relative error of T1, T2 and proton density of each tissue, both ways")
    sequences: dict[str, Sequence]

    @field_validator("sharpen")
    @classmethod
    def _filter(cls, value: Range) -> Range:
        if value[0] < -1:
            raise ValueError(f"at least -1, which leaves nothing sharp, not {value[0]}")
        return ordered(value)

    @field_validator("noise", "bias", "blur_mm", "texture", "relaxation")
    @classmethod
    def _range(cls, value: Range) -> Range:
        if value[0] < 0:
            raise ValueError(f"at least 0, not {value[0]}")
        return ordered(value)


def draw_scans(ranges: Scanner, contrasts: list[str], generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Everything random about len(contrasts) acquisitions: tissue signals, texture, bias, noise, point spread."""
    n = len(contrasts)
    sequences = [ranges.sequences[c] for c in contrasts]
    tr, te, ti = (
        torch.cat([uniform(getattr(s, key), 1, generator) for s in sequences]) for key in ("tr_ms", "te_ms", "ti_ms")
    )
    # On a logarithmic scale, as a suppression of 5 and none are equally likely.
    fat = torch.cat([uniform((math.log(s.fat[0]), math.log(s.fat[1])), 1, generator) for s in sequences]).exp()
    table = torch.tensor(list(RELAXATION.values()))  # (T, 4)
    given = torch.tensor([s.contrast_medium for s in sequences])[:, None]
    t1 = torch.where(given, table[:, 3], table[:, 1])
    pd, t2 = (table[None, :, i].expand(n, -1) for i in (0, 2))
    spread = uniform(ranges.relaxation, n, generator)[:, None]
    pd, t1, t2 = (
        value * (1 + spread * (2 * torch.rand(n, len(TISSUES), generator=generator) - 1)) for value in (pd, t1, t2)
    )
    signal = spin_echo(pd, t1, t2, tr[:, None], te[:, None], ti[:, None])
    for tissue in FATTY:
        signal[:, TISSUES.index(tissue)] *= fat
    return {
        "signal": signal / signal[:, TISSUES.index("wm"), None].clamp_min(1e-3),
        "noise": uniform(ranges.noise, n, generator),
        "blur_mm": uniform(ranges.blur_mm, n, generator),
        "sharpen": uniform(ranges.sharpen, n, generator),
        "texture": uniform(ranges.texture, n, generator),
        "texture_offset": TILE * torch.rand(1, 3, generator=generator),
        "bias": uniform(ranges.bias, n, generator)[:, None, None, None] * torch.randn(n, 4, 5, 4, generator=generator),
    }


def spin_echo(pd, t1, t2, tr, te, ti):
    """Signal of a spin echo, or with ti > 0 of an inversion recovery spin echo, magnitude; times in ms.

    SE: PD (1 - exp(-TR/T1)) exp(-TE/T2); IR: PD |1 - 2 exp(-TI/T1) + exp(-TR/T1)| exp(-TE/T2)
    (Bernstein, King, Zhou, Handbook of MRI Pulse Sequences, 2004, chapter 14; the terms in TE/T1 are left out).
    """
    recovery = torch.where(ti > 0, 1 - 2 * torch.exp(-ti / t1) + torch.exp(-tr / t1), 1 - torch.exp(-tr / t1))
    return pd * recovery.abs() * torch.exp(-te / t2)


def signals(
    atlas: Atlas, fractions: torch.Tensor, scans: dict[str, torch.Tensor], points: torch.Tensor
) -> torch.Tensor:
    """Noise-free signal (C, P) in C scans of tissue fractions (T, P) seen at scanner coordinates (P, 3) mm."""
    clean = scans["signal"] @ fractions
    bias = sample(scans["bias"][None], BOX_MM, points)
    coarse = sample_tile(atlas.noise, points / 4.5 + scans["texture_offset"][0])
    fine = sample_tile(atlas.noise, points / 1.3 + scans["texture_offset"][0])
    grain = (0.6 * coarse + 0.8 * fine)[torch.arange(len(clean)) % 4]
    return clean * (1 + scans["texture"][:, None] * grain) * torch.exp(bias)


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


def acquire(clean: torch.Tensor, scans: dict[str, torch.Tensor], pixel_mm: float, slice_mm: float, generator):
    """What the console shows of noise-free images (C, H, W), as such: point spread, Rician noise, edge enhancement.

    Neighbouring pixels see other depths of a slice (slices.seen). They are averaged, by weights that let nothing
    through that changes from pixel to pixel (1, 2, 1), and less where the slice is thin and these depths are close.
    """
    share = min(0.25, slice_mm / 8)
    weights = clean.new_tensor([share, 1 - 2 * share, share])
    padded = F.pad(clean[:, None], (1, 1, 1, 1), mode="replicate")
    clean = F.conv2d(padded, (weights[:, None] * weights)[None, None])[:, 0]
    more = ((scans["blur_mm"] / pixel_mm) ** 2 - 2 * share).clamp_min(0).sqrt()
    images = rician(blur(clean, more), scans["noise"], generator)
    soft = blur(images, torch.full_like(scans["sharpen"], 1.1))
    return (images + scans["sharpen"].to(images)[:, None, None] * (images - soft)).clamp_min(0)
