"""The autoencoder of a latent diffusion model: into latents, back to grey levels, and adapted to own slices.

Any autoencoder of diffusers will do, with a posterior (AutoencoderKL) or without one (AutoencoderTiny).
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from synthmri import training
from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section


class Adapt(Section):
    """Section `adapt`."""

    seed: int = Field(ge=0)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1, le=1024)
    crop_px: int = Field(ge=32, le=1024, multiple_of=8)
    learning_rate: float = Field(gt=0, le=0.01)
    perceptual: float = Field(ge=0)
    latent_noise: float = Field(ge=0)
    bf16: bool


class Encode(Section):
    """Section `encode`."""

    batch_size: int = Field(ge=1, le=1024)
    flip: bool
    bf16: bool


def load(folder: Path, *, device: str = "cpu"):
    """Open an autoencoder of diffusers, of whatever class its config names, in float32; safetensors only."""
    from diffusers import AutoModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of settings of AutoencoderTiny that it wrote itself
    vae = AutoModel.from_pretrained(str(folder), torch_dtype=torch.float32, use_safetensors=True)
    return vae.requires_grad_(False).eval().to(device)


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W) -> float32 (B, 3, H, W) in [-1, 1], what an autoencoder of this format takes."""
    x = torch.from_numpy(np.array(images)).float() / 127.5 - 1  # a copy: memory-mapped arrays are read-only
    return x[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def to_grey(decoded: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) about [-1, 1] -> uint8 (B, H, W): the channels' mean, through the project's one quantisation."""
    return to_uint8((decoded.float().mean(dim=1) / 2 + 0.5).cpu().numpy())


@torch.no_grad()
def encode(vae, images: np.ndarray, *, batch: int, bf16: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of uint8 (N, H, W) -> two float32 (N, 4, h, w), unscaled.

    Never one sample of it: that would bake its noise into every epoch. A deterministic autoencoder has deviation 0.
    """
    means, deviations = [], []
    device = next(vae.parameters()).device
    for start in range(0, len(images), batch):
        x = to_tensor(images[start : start + batch]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out = vae.encode(x)
        mean, deviation = _posterior(out)
        means.append(mean.float().cpu().numpy())
        deviations.append(deviation.float().cpu().numpy())
    return np.concatenate(means), np.concatenate(deviations)


@torch.no_grad()
def reconstruct(vae, images: np.ndarray, *, batch: int, bf16: bool = False) -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, H, W): each image through the autoencoder and back."""
    device = next(vae.parameters()).device
    out = []
    for start in range(0, len(images), batch):
        x = to_tensor(images[start : start + batch]).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16):
            out.append(to_grey(vae.decode(_posterior(vae.encode(x))[0]).sample))
    return np.concatenate(out)


def rebuild(
    vae,
    x: torch.Tensor,
    perceptual: Callable,
    generator: torch.Generator,
    *,
    weight: float,
    latent_noise: float,
    frozen_encoder: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Loss of rebuilding x: L1 + weight * perceptual distance (LPIPS, Zhang 2018), and the latents it went through.

    x: (B, 3, H, W) in [-1, 1]; perceptual: (B, 3, H, W) x (B, 3, H, W) -> distances; latent_noise: standard deviation
    of noise on the latents, relative to theirs, so that the decoder forgives a sampler's errors; generator: its source.
    Returns a scalar and (B, C, h, w).
    """
    with torch.set_grad_enabled(not frozen_encoder):
        z = _posterior(vae.encode(x))[0].float()
    noise = latent_noise * torch.randn(z.shape, generator=generator).to(z)
    y = vae.decode(z + noise * z.detach().std()).sample.float()
    distance = perceptual(x, y.clamp(-1.2, 1.2)).float().mean()
    return F.l1_loss(y, x) + weight * distance, z


def adapt(
    vae,
    images: np.ndarray,
    part: str,
    p: Adapt,
    perceptual: Callable,
    *,
    checkpoint: Path,
    tick: Callable[[int, float], None] = lambda step, loss: None,
) -> None:
    """Train `vae` in place on random, half of them mirrored crops of uint8 (N, H, W).

    part: "decoder" keeps the latent space that a UNet knows, "full" moves it; perceptual: as for `rebuild`.
    Written to `checkpoint` every 100 steps; a run that was killed goes on from there to the same result.
    Raises UserError when the loss stops being finite.
    """
    device = next(vae.parameters()).device
    crop = min(p.crop_px, *images.shape[1:])
    # The pieces by their names in diffusers: both kinds have `decoder`, the KL kind a convolution before it.
    names = ("decoder.", "post_quant_conv.") if part == "decoder" else ("",)
    vae.requires_grad_(False)
    weights = [w.requires_grad_(True) for name, w in vae.named_parameters() if name.startswith(names)]
    optimizer = torch.optim.AdamW(weights, lr=p.learning_rate, betas=(0.9, 0.99), weight_decay=0.0)
    first = 0
    if state := training.load_checkpoint(checkpoint):
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    vae.train()
    for step in range(first, p.steps):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * training.warm_cosine(step, p.steps, min(10, p.steps))
        generator = training.step_generator(p.seed, step)
        x = to_tensor(_crops(images, p.batch_size, crop, generator)).to(device)
        with torch.autocast(device.type, dtype=torch.bfloat16, enabled=p.bf16):
            value, _ = rebuild(
                vae, x, perceptual, generator,
                weight=p.perceptual, latent_noise=p.latent_noise, frozen_encoder=part == "decoder",
            )  # fmt: skip
        optimizer.zero_grad(set_to_none=True)
        value.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        loss = value.item()
        if not np.isfinite(loss):
            raise UserError(
                f"adapting the autoencoder diverged: the loss of step {step} is {loss}; lower adapt.learning_rate "
                f"(now {p.learning_rate}) or set adapt.bf16 to false"
            )
        tick(step, loss)
        if (step + 1) % 100 == 0 or step + 1 == p.steps:
            state = {"vae": vae.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1}
            training.save_checkpoint(checkpoint, state)
    vae.requires_grad_(False).eval()


def _posterior(out) -> tuple[torch.Tensor, torch.Tensor]:
    if hasattr(out, "latent_dist"):
        return out.latent_dist.mean, out.latent_dist.std
    return out.latents, torch.zeros_like(out.latents)


def _crops(images: np.ndarray, count: int, size: int, generator: torch.Generator) -> np.ndarray:
    """uint8 (count, size, size) from random places of random images, half of them mirrored left to right."""

    def draw(below: int) -> list[int]:
        return torch.randint(below, (count,), generator=generator).tolist()

    height, width = images.shape[1:]
    places = zip(draw(len(images)), draw(height - size + 1), draw(width - size + 1), draw(2), strict=True)
    return np.stack(
        [
            images[i, top : top + size, left : left + size][:, :: -1 if mirrored else 1]
            for i, top, left, mirrored in places
        ]
    )
