"""The autoencoder of a latent diffusion model: into latents and back to grey levels.

Any autoencoder of diffusers will do, with a posterior (AutoencoderKL) or without one (AutoencoderTiny).
"""

from pathlib import Path

import numpy as np
import torch
from pydantic import Field

from synthmri.imageset import to_uint8
from synthmri.params import Section
from synthmri.training.precision import Precision, autocast


class Encode(Section):
    """Section `encode`."""

    views: int = Field(ge=1, le=64)


def load(folder: Path, *, device: str = "cpu"):
    """Open an autoencoder of diffusers, of whatever class its config names, in float32; safetensors only."""
    from diffusers import AutoModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of settings of AutoencoderTiny that it wrote itself
    vae = AutoModel.from_pretrained(str(folder), torch_dtype=torch.float32, use_safetensors=True)
    return quicker(vae.requires_grad_(False).eval().to(device))


def quicker(vae):
    """The same network, quicker: channels last and, on a CPU, one image at a time.

    The activations of a whole batch leave a processor's caches; one by one, decoding takes 0.4 times as long.
    """
    vae.to(memory_format=torch.channels_last)
    if vae.device.type == "cpu":
        vae.enable_slicing()
    return vae


def to_tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 (B, H, W) -> float32 (B, 3, H, W) in [-1, 1], what an autoencoder of this format takes."""
    x = torch.from_numpy(np.array(images)).float() / 127.5 - 1  # a copy: memory-mapped arrays are read-only
    return x[:, None].expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def to_grey(decoded: torch.Tensor) -> np.ndarray:
    """(B, 3, H, W) about [-1, 1] -> uint8 (B, H, W): the channels' mean, through the project's one quantisation."""
    return to_uint8((decoded.float().mean(dim=1) / 2 + 0.5).cpu().numpy())


@torch.no_grad()
def encode(vae, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> tuple[np.ndarray, np.ndarray]:
    """Posterior mean and standard deviation of uint8 (N, H, W) -> two float32 (N, 4, h, w), unscaled.

    Never one sample of it: that would bake its noise into every epoch. A deterministic autoencoder has deviation 0.
    """
    means, deviations = [], []
    device = next(vae.parameters()).device
    for start in range(0, len(images), batch_size):
        x = to_tensor(images[start : start + batch_size]).to(device)
        with autocast(device, precision):
            out = vae.encode(x)
        mean, deviation = posterior(out)
        means.append(mean.float().cpu().numpy())
        deviations.append(deviation.float().cpu().numpy())
    return np.concatenate(means), np.concatenate(deviations)


@torch.no_grad()
def reconstruct(vae, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, H, W): each image through the autoencoder and back."""
    device = next(vae.parameters()).device
    out = []
    for start in range(0, len(images), batch_size):
        x = to_tensor(images[start : start + batch_size]).to(device)
        with autocast(device, precision):
            out.append(to_grey(vae.decode(posterior(vae.encode(x))[0]).sample))
    return np.concatenate(out)


def posterior(out) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of what `vae.encode` gave; 0 for an autoencoder without a posterior."""
    if hasattr(out, "latent_dist"):
        return out.latent_dist.mean, out.latent_dist.std
    return out.latents, torch.zeros_like(out.latents)
