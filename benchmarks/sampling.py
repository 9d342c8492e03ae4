"""Images a second: this project's sampling against the original's recipe (diffusers' pipeline, 1000 steps, guidance 7,
batches of 32, float32), on the same model and machine; and how much of the ratio each difference brings.

python -m benchmarks.sampling

The differences are taken over one after the other: fewer steps, no guidance, the number format, and what is left (the
layout in memory, decoding one by one, the scheduler, the size of batches). Steps, guidance and format are choices that
diffusers' pipeline offers as well; only the rest is this project's code. One batch of the original takes some twenty
minutes on two cores. Its time is linear in the steps, so two and ten steps are timed and the line is carried on, unless
--whole asks for all of it; the result says which. Whether the images are worse for fewer steps is asked of few images
by benchmarks.seed_recipe.
"""

import contextlib
import time
from operator import truediv
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import measure
from stages import _cli
from synthmri import params
from synthmri.generators import latent_diffusion
from synthmri.training import sampling
from synthmri.training.precision import Precision, autocast

PROMPT = "T1w axial brain MRI, level 6"
STEPS, GUIDANCE, BATCH = 1000, 7.0, 32  # the original's


def main(
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = Path("models/latent_diffusion"),
    whole: Annotated[bool, typer.Option(help="run all 1000 steps of the original's recipe")] = False,
):
    """Write benchmarks/results/sampling.json."""
    precision = _cli.precision(_cli.start())
    p = params.read(_cli.PARAMS, "sample", sampling.Sample)
    pipe = latent_diffusion.load(model)
    size = latent_diffusion.image_size(pipe)

    def ours() -> None:
        latent_diffusion.draw(pipe, [PROMPT] * p.batch_size, range(p.batch_size), p, size=size, precision=precision)[
            :, 0
        ]

    ours_rate = p.batch_size / measure.seconds(ours, repeats=2)

    pipe = latent_diffusion.load(model)
    pipe.vae.disable_slicing()  # which `latent_diffusion.load` set, as it does the layout
    pipe.vae.to(memory_format=torch.contiguous_format)
    pipe.scheduler = latent_diffusion.new_scheduler(pipe, "ddpm")

    def plain(steps: int, guidance: float, precision: Precision, stop: int | None = None) -> float:
        """Seconds of one batch by diffusers' pipeline, left after `stop` steps (None: all of it)."""

        def check(pipe, step, timestep, inputs):
            if stop is not None and step + 1 == stop:
                raise StopIteration
            return inputs

        start = time.perf_counter()
        with contextlib.suppress(StopIteration), autocast("cpu", precision):
            pipe(
                [PROMPT] * BATCH, num_inference_steps=steps, guidance_scale=guidance, height=size, width=size,
                generator=torch.Generator().manual_seed(0), callback_on_step_end=check,
            )  # fmt: skip
        return time.perf_counter() - start

    plain(STEPS, GUIDANCE, "fp32", stop=1)
    if whole:
        original = plain(STEPS, GUIDANCE, "fp32")
    else:
        few, many = (plain(STEPS, GUIDANCE, "fp32", stop=steps) for steps in (2, 10))
        original = few + (many - few) / 8 * (STEPS - 2)  # decoding, well below a thousandth, is left out
    seconds = [
        original, plain(p.steps, GUIDANCE, "fp32"), plain(p.steps, p.guidance_scale, "fp32"),
        plain(p.steps, p.guidance_scale, precision), BATCH / ours_rate,
    ]  # fmt: skip
    parts = dict(zip(("steps", "guidance", "precision", "rest"), map(truediv, seconds, seconds[1:]), strict=True))
    measure.write(
        "sampling",
        {
            "ratio": seconds[0] / seconds[-1],
            "parts": parts,
            "ours": {
                "images_per_second": ours_rate, "steps": p.steps, "guidance_scale": p.guidance_scale,
                "scheduler": p.scheduler, "batch_size": p.batch_size, "precision": precision,
            },
            "original": {
                "images_per_second": BATCH / original, "steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": "ddpm",
                "batch_size": BATCH, "precision": "fp32", "extrapolated": not whole,
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    _cli.run(main)
