"""The autoencoder of a latent diffusion model: into latents and back to grey levels, and to masks of lesions.

Any autoencoder of diffusers will do, with a posterior (AutoencoderKL) or without one (AutoencoderTiny). Three channels
are what this format has, and grey images need one: where its config.json says so, red and green are the image and blue
is the mask of its lesions, which the decoder tells from the same latents (as of a GAN's features DatasetGAN, Zhang
2021, arXiv 2104.06490). The encoder sees the image alone, so that latents are those that the UNet knows.
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


def draws_masks(vae) -> bool:
    """Whether blue of what it decodes is a mask."""
    return vae.config.get("third_channel") == "mask"


def mark_masked(vae, masked: bool) -> None:
    """Say in its config, which diffusers writes and reads and ignores, whether it does."""
    if masked != draws_masks(vae):
        vae.register_to_config(third_channel="mask" if masked else None)


def to_tensor(images: np.ndarray, masks: np.ndarray | None = None) -> torch.Tensor:
    """uint8 (B, H, W) -> float32 (B, 3, H, W) in [-1, 1], what an autoencoder of this format takes; with masks, which
    are likewise: what one that draws these is to give."""
    planes = [images, images, images if masks is None else masks]
    x = torch.from_numpy(np.stack(planes, axis=1)).float() / 127.5 - 1
    return x.contiguous(memory_format=torch.channels_last)


def grey(x: torch.Tensor, masked: bool) -> torch.Tensor:
    """(B, 3, H, W) -> (B, 1, H, W): the mean of the channels that hold the image."""
    return (x[:, :2] if masked else x).mean(dim=1, keepdim=True)


def to_planes(shown: torch.Tensor, masked: bool) -> np.ndarray:
    """(B, 3, H, W) about [0, 1] -> uint8 (B, P, H, W): the image through the project's one quantisation, and where blue
    is a mask, 255 where that is above the middle."""
    planes = to_uint8(grey(shown.float(), masked).cpu().numpy())
    if not masked:
        return planes
    return np.concatenate([planes, 255 * (shown[:, 2:] > 0.5).cpu().numpy().astype(np.uint8)], axis=1)


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


def reconstruct(vae, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, H, W): each image through the autoencoder and back."""
    return rebuilt(vae, images, batch_size=batch_size, precision=precision)[:, 0]


@torch.no_grad()
def rebuilt(vae, images: np.ndarray, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, H, W) -> uint8 (N, P, H, W): the same, and where it draws masks, that of each image beside it."""
    device = next(vae.parameters()).device
    out = []
    for start in range(0, len(images), batch_size):
        x = to_tensor(images[start : start + batch_size]).to(device)
        with autocast(device, precision):
            decoded = vae.decode(posterior(vae.encode(x))[0]).sample
        out.append(to_planes(decoded.float() / 2 + 0.5, draws_masks(vae)))
    return np.concatenate(out)


def posterior(out) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of what `vae.encode` gave; 0 for an autoencoder without a posterior."""
    if hasattr(out, "latent_dist"):
        return out.latent_dist.mean, out.latent_dist.std
    return out.latents, torch.zeros_like(out.latents)
