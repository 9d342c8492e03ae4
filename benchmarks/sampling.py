"""Images a second: this project's sampling against the original's recipe (diffusers' pipeline, 1000 steps, guidance 7,
batches of 32, float32), on the same model and machine.

python -m benchmarks.sampling

One batch of the original takes a quarter of an hour on two cores. Its time is linear in the steps, so two and ten steps
are timed and the line is carried on, unless --whole asks for all of it; the result says which. Whether the images are
worse for it is asked of few images, with no words in the prompt, by benchmarks.seed_recipe.
"""

import contextlib
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from benchmarks import measure
from stages import _cli
from synthmri import params
from synthmri.generators import latent_diffusion
from synthmri.training import sampling

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
        latent_diffusion.sample(pipe, [PROMPT] * p.batch_size, range(p.batch_size), p, size=size, precision=precision)

    ours_rate = p.batch_size / measure.seconds(ours, repeats=2)

    pipe = latent_diffusion.load(model)
    pipe.vae.disable_slicing()  # which `latent_diffusion.load` set, as it does the layout
    pipe.vae.to(memory_format=torch.contiguous_format)
    pipe.scheduler = latent_diffusion.new_scheduler(pipe, "ddpm")

    def original(stop: int | None) -> float:
        """Seconds of one batch, left after `stop` steps (None: all of it)."""

        def check(pipe, step, timestep, inputs):
            if stop is not None and step + 1 == stop:
                raise StopIteration
            return inputs

        start = time.perf_counter()
        with contextlib.suppress(StopIteration):
            pipe(
                [PROMPT] * BATCH, num_inference_steps=STEPS, guidance_scale=GUIDANCE, height=size, width=size,
                generator=torch.Generator().manual_seed(0), callback_on_step_end=check,
            )  # fmt: skip
        return time.perf_counter() - start

    if whole:
        original_seconds = original(None)
    else:
        original(1)
        few, many = original(2), original(10)
        original_seconds = few + (many - few) / 8 * (STEPS - 2)  # decoding, well below a thousandth, is left out
    original_rate = BATCH / original_seconds
    measure.write(
        "sampling",
        {
            "ratio": ours_rate / original_rate,
            "ours": {
                "images_per_second": ours_rate, "steps": p.steps, "guidance_scale": p.guidance_scale,
                "scheduler": p.scheduler, "batch": p.batch_size, "precision": precision,
            },
            "original": {
                "images_per_second": original_rate, "steps": STEPS, "guidance_scale": GUIDANCE, "scheduler": "ddpm",
                "batch": BATCH, "precision": "fp32", "extrapolated": not whole,
            },
        },
    )  # fmt: skip


if __name__ == "__main__":
    _cli.run(main)
