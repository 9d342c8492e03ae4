"""What all sampling shares: its parameters, and image i from seed i alone."""

import re
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from synthmri import params, streams
from synthmri.errors import UserError
from synthmri.imageset import to_uint8
from synthmri.params import Section
from synthmri.training import distributed
from synthmri.training.precision import Precision, autocast

Scheduler = Literal["sde-dpmsolver++", "dpmsolver++", "ddim", "ddpm", "euler"]
# Scheduler -> its class in diffusers, and what it is told beside the checkpoint's own configuration. Trailing steps
# begin where training's noise ends (Lin 2024, arXiv 2305.08891); the leading ones of Stable Diffusion's configuration
# stop short of it, and run past it when all 1000 are asked for. Latents are not confined to [-1, 1], nor clipped.
SCHEDULERS: dict[str, tuple[str, dict]] = {
    name: ("DPMSolverMultistepScheduler", {"timestep_spacing": "trailing", "algorithm_type": name, "solver_order": 2})
    for name in ("sde-dpmsolver++", "dpmsolver++")
} | {
    "ddim": ("DDIMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "ddpm": ("DDPMScheduler", {"timestep_spacing": "trailing", "clip_sample": False}),
    "euler": ("EulerDiscreteScheduler", {"timestep_spacing": "trailing"}),
}


LAG = 0.02  # share of each of DDIM's steps that may be missing


class Sample(Section):
    """Section `sample`; steps, guidance and scheduler are of the latent diffusion model alone."""

    n: int = Field(ge=1, le=100_000)
    seed: int = Field(ge=0, lt=2**62)
    steps: int = Field(ge=1, le=1000)
    guidance_scale: float = Field(ge=1, le=50)
    scheduler: Scheduler
    batch_size: int = Field(ge=1, le=1024)


def with_choice(p: Sample, choice: dict) -> Sample:
    """`p` with the guidance, steps and scheduler that were chosen for it. Raises UserError for other values."""
    if not isinstance(choice, dict):
        raise UserError(f"what stage `sweep` chose is no map of settings but {choice!r}; run `dvc repro sweep`")
    return params.parse(p.model_dump() | choice, "sample", Sample, "what stage `sweep` chose")


def guidance(texts: Sequence[str], wanted: float) -> float:
    """`wanted`, or 1 (off) where every prompt is empty: both predictions are then the same.

    Guidance draws u + wanted (c - u), of the predictions c with the prompt and u with what `unlabelled` leaves of it:
    Ho 2022, arXiv 2207.12598, eq. 6 with w + 1 = wanted.
    """
    return wanted if any(texts) else 1.0


def unlabelled(text: str, labels: Sequence[str]) -> str:
    """A prompt without the word of its label, or "" where it names none of them: what guidance compares it with.

    So guidance strengthens the label alone, which is little of what a slice shows and is hardly heeded without.
    """
    words = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True))
    found = re.search(rf"(?<!\w)(?:{words})(?!\w)", text) if words else None
    if not found:
        return ""
    parts = f"{text[: found.start()]} {text[found.end() :]}".split(",")
    return ", ".join(filter(None, (" ".join(part.split()) for part in parts)))


def evaluations(texts: Sequence[str], p: Sample) -> int:
    """How often the UNet is asked for one image."""
    return p.steps * (2 if guidance(texts, p.guidance_scale) > 1 else 1)


def set_steps(scheduler, steps: int) -> None:
    """`scheduler.set_timesteps`, where they are as many as asked for and none lies before the first.

    For some numbers, rounding gives diffusers' trailing steps one too many, at t = -1, which ruins the image; and its
    DDIM goes whole // steps timesteps down at each, whatever the next one is, so that the network is told of less noise
    than there is, the less evenly steps divide all of them. Raises UserError for those, of DDIM beyond LAG.
    """
    scheduler.set_timesteps(steps)
    whole = scheduler.config.num_train_timesteps

    def even(n: int) -> bool:
        if type(scheduler).__name__ == "DDIMScheduler":
            return whole % n <= LAG * whole
        return len(np.arange(whole, 0, -whole / n)) == n

    if int(scheduler.timesteps.min()) < 0 or not even(steps):
        fewer = next(n for n in range(steps - 1, 0, -1) if even(n))
        raise UserError(
            f"{steps} denoising steps do not space evenly over the {whole} of training; take {fewer} (sample.steps, or "
            "what asks for it)"
        )


def in_batches(
    draw: Callable[[list[torch.Generator]], torch.Tensor], seeds: Sequence[int], batch_size: int, device: torch.device,
    precision: Precision, progress: Callable = lambda batches, total: batches,
) -> np.ndarray:  # fmt: skip
    """uint8 (N, S, S): the images that `draw` makes with a generator for each seed, (B, 1, S, S) in [-1, 1].

    It runs on `device` under autocast of `precision`.

    Every batch has the same shape (the last is filled up), so that neither N nor its company changes an image. Several
    processes draw the same batches, each some of them. Raises UserError when they are not finite.
    """

    def one(start: int) -> np.ndarray:
        rows = [min(start + k, len(seeds) - 1) for k in range(batch_size)]
        with torch.no_grad(), autocast(device, precision):
            images = draw([streams.of_image(int(seeds[i])) for i in rows])
        images = images[: len(seeds) - start, 0].float().cpu()
        if not torch.isfinite(images).all():
            raise UserError("the model draws values that are not finite; train it again with a lower learning rate")
        return to_uint8((images / 2 + 0.5).numpy())

    return np.concatenate(distributed.map_items(one, range(0, len(seeds), batch_size), progress))


def noise(generators: list[torch.Generator], size: int) -> torch.Tensor:
    """(B, size) of N(0, 1), row i from generator i alone."""
    return torch.stack([torch.randn(size, generator=generator) for generator in generators])
