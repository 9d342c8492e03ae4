"""Denoising diffusion in pixel space (Ho 2020, arXiv 2006.11239): diffusers' UNet2DModel and ancestral sampling.

A space-to-depth stem (pixel unshuffle) makes large pictures affordable: the UNet sees (stem^2, S/stem, S/stem). Changed
from the paper, whose pictures had 32 pixels: the UNet predicts the image itself, under the loss of v, on a cosine
schedule that is shifted for the size (Hoogeboom 2023, arXiv 2301.11093) and ends in pure noise (Lin 2024, arXiv
2305.08891). An image lies on few dimensions and noise on all, so a network with few channels for stem^2 pixels can
carry the one and not the other (Li and He 2025, arXiv 2511.13720). The loss of v counts errors of an image SNR + 1
times, so that the few nearly clean pictures of a batch make most of its gradient, and a short training learns nothing
of where heads come from; here that is bounded (as in Hang 2023, doi 10.1109/ICCV51070.2023.00684).
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field

from synthmri.errors import UserError
from synthmri.generators.baseline import Baseline, Training
from synthmri.training import denoising_loss, distributed, loop, resolution, sampling
from synthmri.training.precision import Precision, autocast

BOUND = 1.0  # of the weight of nearly clean pictures: SNR + 1 counts as BOUND + 1 at most
NOISE_SIZE = 64  # px: pictures of this edge have the plain cosine schedule (Hoogeboom 2023, section 2.3)


class Params(Training):
    """Section `baselines.ddpm`."""

    stem: int = Field(ge=1, le=16)
    channels: tuple[Annotated[int, Field(ge=16, multiple_of=16)], ...] = Field(min_length=2, max_length=6)
    layers_per_block: int = Field(ge=1, le=4)
    sample_steps: int = Field(ge=1, le=1000)


def new_scheduler(size: int):
    """1000 timesteps for pictures of `size` pixels, which are what is predicted, confined to [-1, 1] on the way.

    Timestep i has the signal that the shifted cosine has at u = (i + 1) / 1000: log SNR = -2 log tan(pi u / 2) +
    2 log(64 / size) (Hoogeboom 2023, eq. 4), which at the last is none.
    """
    from diffusers import DDPMScheduler

    u = np.arange(1, 1001) / 1000
    tangent = np.tan(np.pi * u[:-1] / 2) * size / NOISE_SIZE
    signal = np.append(1 / (1 + tangent**2), 0.0)
    betas = 1 - signal / np.append(1.0, signal[:-1])
    return DDPMScheduler(
        num_train_timesteps=1000, trained_betas=betas, prediction_type="sample", timestep_spacing="trailing"
    )


class DDPM(Baseline):
    """Draws by ancestral sampling (Ho 2020, algorithm 2) at `sample_steps` of the 1000 timesteps."""

    name, Params, architecture, target = "ddpm", Params, ("stem", "channels", "layers_per_block"), "image"

    @staticmethod
    def build(p: Params, size: int):
        from diffusers import UNet2DModel

        unit = p.stem * 2 ** (len(p.channels) - 1)
        if size % unit:
            raise UserError(
                f"images of {size} pixels are no multiple of {unit} = baselines.ddpm.stem x 2 for each channel after "
                "the first; lower stem, or give fewer channels"
            )
        deep = len(p.channels) - 2  # attention at the two lowest resolutions
        return UNet2DModel(
            sample_size=size // p.stem, in_channels=p.stem**2, out_channels=p.stem**2,
            layers_per_block=p.layers_per_block, block_out_channels=p.channels, norm_num_groups=16,
            attention_head_dim=16, down_block_types=("DownBlock2D",) * deep + ("AttnDownBlock2D",) * 2,
            up_block_types=("AttnUpBlock2D",) * 2 + ("UpBlock2D",) * deep,
        )  # fmt: skip

    def __init__(self, network, config):
        super().__init__(network, config)
        self.p, self.scheduler = Params.model_validate(config["params"], strict=False), new_scheduler(self.px)

    def learner(self, p, draw, *, seed, precision):
        optimizer = torch.optim.Adam(self.network.parameters(), lr=p.learning_rate)
        share = distributed.share(p.batch_size)

        def update(step, generator):
            x = F.pixel_unshuffle(draw(generator), p.stem)
            with autocast(self.device, precision):
                loss = denoising_loss.loss(self.network, x, self.scheduler, generator, snr_gamma=BOUND, share=share)
            loop.set_rate(optimizer, p.learning_rate * loop.warm_cosine(step, p.steps, 10))
            loop.descend(optimizer, loss, max_grad_norm=1.0)
            return {"loss": loss.item()}

        return {"optimizer": optimizer}, update

    def draw(self, generators):
        sampling.set_steps(self.scheduler, self.p.sample_steps)
        edge = self.px // self.p.stem
        x = torch.stack([torch.randn(self.p.stem**2, edge, edge, generator=each) for each in generators])
        x = x.to(self.device)
        for t in self.scheduler.timesteps:
            predicted = self.network(x, t).sample.float()
            x = self.scheduler.step(predicted, t, x, generator=generators).prev_sample
        return F.pixel_shuffle(x, self.p.stem)

    @torch.no_grad()
    def denoising_errors(
        self, images: np.ndarray, texts: Sequence[str], timesteps: Sequence[int], *, seed: int, batch_size: int,
        precision: Precision = "fp32",
    ) -> np.ndarray:  # fmt: skip
        """This model knows no prompts; see `Generator`."""
        denoising_loss.check_timesteps(timesteps, self.scheduler)
        out = []
        for start in range(0, len(images), batch_size):
            smaller = resolution.shrunk(images[start : start + batch_size], self.px)
            x = F.pixel_unshuffle(loop.to_tensor(smaller), self.p.stem).to(self.device)
            with autocast(self.device, precision):
                out.append(denoising_loss.errors_at(self.network, x, timesteps, self.scheduler, seed))
        return np.concatenate(out)
