"""Denoising diffusion in pixel space (Ho 2020, arXiv 2006.11239): diffusers' UNet2DModel, epsilon, linear betas.

A space-to-depth stem (pixel unshuffle) makes large pictures affordable: the UNet sees (stem^2, S/stem, S/stem).
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from synthmri.errors import UserError
from synthmri.params import Section
from synthmri.training import denoising_loss, distributed, loop, sampling
from synthmri.training.precision import Precision, autocast


class Params(Section):
    """Section `baselines.ddpm`."""

    stem: int = Field(ge=1, le=16)
    channels: tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...] = Field(min_length=2, max_length=6)
    layers_per_block: int = Field(ge=1, le=4)
    sample_steps: int = Field(ge=1, le=1000)
    steps: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    learning_rate: float = Field(gt=0, le=0.1)
    ema_decay: float = Field(ge=0, lt=1)
    shift_px: int = Field(ge=0, le=64)


def build(config: dict):
    """The untrained UNet of {"params": section, "size": pixels, "seed": whole number}."""
    from diffusers import UNet2DModel

    p = Params.model_validate(config["params"], strict=False)
    torch.manual_seed(config["seed"])
    deep = len(p.channels) - 2  # attention at the two lowest resolutions
    unet = UNet2DModel(
        sample_size=config["size"] // p.stem, in_channels=p.stem**2, out_channels=p.stem**2,
        layers_per_block=p.layers_per_block, block_out_channels=p.channels, norm_num_groups=16, attention_head_dim=16,
        down_block_types=("DownBlock2D",) * deep + ("AttnDownBlock2D",) * 2,
        up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * deep,
    ).to(memory_format=torch.channels_last)  # fmt: skip
    unet.params = p
    return unet


def new_scheduler():
    """1000 steps with betas from 1e-4 to 0.02 (Ho 2020, section 4). Images are confined to [-1, 1] on the way."""
    from diffusers import DDPMScheduler

    # Trailing steps begin where training's noise ends (Lin 2024, arXiv 2305.08891), whatever their number.
    return DDPMScheduler(
        num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, timestep_spacing="trailing"
    )


def fit(
    images: np.ndarray, p: Params, *, seed: int, points: int, checkpoint, tick, snapshot, device="cpu", precision="fp32"
):
    """Train on uint8 (N, S, S). Returns the averaged UNet, its config, losses a step, floating-point operations.

    Arguments and errors as in `vae.fit`.
    """
    unit = p.stem * 2 ** (len(p.channels) - 1)
    if images.shape[1] % unit:
        raise UserError(
            f"images of {images.shape[1]} pixels are no multiple of {unit} = baselines.ddpm.stem x 2 for each channel "
            "after the first; lower stem, or give fewer channels"
        )
    config = {"params": p.model_dump(), "size": images.shape[1], "seed": seed}
    unet, scheduler = build(config).to(device), new_scheduler()
    optimizer = torch.optim.Adam(unet.parameters(), lr=p.learning_rate)
    average = loop.averaged(unet, p.ema_decay)
    share = distributed.share(p.batch_size)

    def update(step, generator):
        for group in optimizer.param_groups:
            group["lr"] = p.learning_rate * loop.warm_cosine(step, p.steps, 10)
        x = F.pixel_unshuffle(loop.batch(images, p.batch_size, p.shift_px, generator), p.stem).to(device)
        with autocast(device, precision):
            # The paper's simple loss, eq. 14.
            loss = denoising_loss.loss(unet, x, scheduler, generator, snr_gamma=0.0, share=share)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        distributed.sum_gradients(unet.parameters())
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update_parameters(unet)
        return {"loss": loss.item()}

    history, operations = loop.run(
        {"model": unet, "optimizer": optimizer, "average": average}, update, name="ddpm", seed=seed, steps=p.steps,
        points=points, checkpoint=checkpoint, tick=tick, snapshot=lambda point: snapshot(point, average.module),
    )  # fmt: skip
    return average.module, config, history, operations


def sample(model, seeds, *, batch_size: int, precision: Precision = "fp32") -> np.ndarray:
    """uint8 (N, S, S) by ancestral sampling (Ho 2020, algorithm 2) at `sample_steps` of the 1000 steps.

    Image i depends on seeds[i] alone: its generator draws the start and the noise of every step.
    """
    p, device = model.params, next(model.parameters()).device
    model.eval()
    scheduler = new_scheduler()
    sampling.set_steps(scheduler, p.sample_steps)
    shape = (p.stem**2, model.config.sample_size, model.config.sample_size)

    def draw(generators):
        x = torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        for t in scheduler.timesteps:
            predicted = model(x, t).sample.float()
            x = scheduler.step(predicted, t, x, generator=generators).prev_sample
        return F.pixel_shuffle(x, p.stem)

    return sampling.in_batches(draw, seeds, batch_size, device, precision)


@torch.no_grad()
def denoising_errors(
    model, images: np.ndarray, texts: Sequence[str], timesteps: Sequence[int], *, seed: int, batch: int,
    precision: Precision = "fp32",
) -> np.ndarray:  # fmt: skip
    """uint8 (N, S, S) -> float64 (N, T), as `latent_diffusion.denoising_errors`; this model knows no prompts."""
    scheduler, out = new_scheduler(), []
    denoising_loss.check_timesteps(timesteps, scheduler)
    device = next(model.parameters()).device
    for start in range(0, len(images), batch):
        x = torch.from_numpy(np.array(images[start : start + batch]))[:, None].float() / 127.5 - 1
        x = F.pixel_unshuffle(x, model.params.stem).to(device)
        with autocast(device, precision):
            out.append(denoising_loss.errors_at(model, x, timesteps, scheduler, seed))
    return np.concatenate(out)


def load(folder: Path, *, device: str = "cpu"):
    """Open what `training.save_model` wrote of a trained model."""
    return loop.load_model(folder, build, device=device)
