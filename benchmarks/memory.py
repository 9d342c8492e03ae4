"""What it brings that freed memory is kept (stages/_cli.py): training steps by and without it, in processes by turns.

python -m benchmarks.memory

Steps of the DCGAN and of the autoencoder's adaptation as params.yaml has them, on noise. Seconds are medians over
steps; each ratio is the median over pairs of processes that ran one after the other.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Annotated

import numpy as np
import typer

from benchmarks import measure
from stages import _cli

PAIRS, STEPS, SIZE = 3, 9, 256
WORK = ("dcgan", "autoencoder")


def main(
    alone: Annotated[str, typer.Option(help="for the processes it starts: the work to time in this one")] = "",
    kept: Annotated[bool, typer.Option(help="for the same: whether freed memory is kept")] = True,
) -> None:
    """Write benchmarks/results/memory.json."""
    if alone:
        if not kept:
            _cli.keep_memory = lambda: None
        return print(_step_s(alone))
    result = {}
    for work in WORK:
        pairs = [[_process(work, kept) for kept in (True, False)] for _ in range(PAIRS)]
        result[work] = {
            "step_s": median(ours for ours, _ in pairs),
            "step_s_without": median(theirs for _, theirs in pairs),
            "times_as_fast": median(theirs / ours for ours, theirs in pairs),
        }
    measure.write("memory", result)


def _process(work: str, kept: bool) -> float:
    command = [sys.executable, "-m", "benchmarks.memory", "--alone", work, "--kept" if kept else "--no-kept"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _step_s(work: str) -> float:
    """Median seconds of a training step in this process; the first two are not counted."""
    from synthmri import generators, params
    from synthmri.generators import autoencoder, autoencoder_training
    from synthmri.training import perceptual

    runtime = _cli.start()
    precision = _cli.precision(runtime)
    images = np.random.default_rng(0).integers(0, 256, (64, SIZE, SIZE), np.uint8)
    ticks: list[float] = []

    def tick(step: int, loss: float, rate: float) -> None:
        ticks.append(time.perf_counter())

    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "one.pt"
        if work == "autoencoder":
            p = params.read(_cli.PARAMS, "adapt", autoencoder_training.Adapt).model_copy(update={"steps": STEPS})
            vae = autoencoder.load(Path("pretrained/autoencoder"))
            autoencoder_training.adapt(
                vae, images, "full", p, perceptual.lpips_model(device="cpu"), seed=0, checkpoint=checkpoint,
                precision=precision, tick=tick,
            )  # fmt: skip
        else:
            generator = generators.find(work)
            p = params.read(_cli.PARAMS, f"baselines.{work}", generator.Params).model_copy(update={"steps": STEPS})
            generator.fit(
                images, p, seed=0, points=1, checkpoint=checkpoint, precision=precision, tick=tick,
                snapshot=lambda point, model: None,
            )  # fmt: skip
    return float(np.median(np.diff(ticks)[1:]))


if __name__ == "__main__":
    _cli.run(main)
