"""The original recipe of sampling (profiles/seed.yaml) beside the tuned one (params.yaml): one model, one run.

python -m benchmarks.seed_recipe --model models/latent_diffusion --n 50

Only the sampling differs: both draw from the model as section `finetune` trained it. The original draws without words,
so its guidance of 7 changes nothing and is not computed; a pipeline that computes it all the same takes twice the time.
"""

import time
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.evaluation import distances, features
from synthmri.generators import latent_diffusion
from synthmri.scans import prompts
from synthmri.training import sampling


def main(
    model: Annotated[Path, typer.Option(help="fine-tuned pipeline")] = Path("models/latent_diffusion"),
    train: Annotated[Path, typer.Option(help="ImageSet whose prompts are drawn from")] = Path("data/slices/train"),
    test: Annotated[Path, typer.Option(help="ImageSet to compare with: test slices")] = Path("data/slices/test"),
    profile: Annotated[Path, typer.Option(help="the original recipe")] = Path("profiles/seed.yaml"),
    n: Annotated[int, typer.Option(min=8, help="images of each; best a multiple of both batches, or below both")] = 50,
):
    """Seconds, FD and KID of each; `ratio` is of images a second, tuned to original."""
    runtime = _cli.start()
    own = _cli.precision(runtime)
    tuned = params.read(_cli.PARAMS, "sample", sampling.Sample)
    words = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
    overlay = yaml.safe_load(profile.read_text(encoding="utf-8"))
    recipes = {
        "tuned": (tuned, words, own),
        "original": (
            params.parse(tuned.model_dump() | overlay["sample"], "sample", sampling.Sample, str(profile)),
            params.parse(words.model_dump() | overlay["prompt"], "prompt", prompts.Prompt, str(profile)),
            overlay["runtime"]["precision"],
        ),
    }
    known, real = imageset.read(train), imageset.read(test).images
    reference = features.alexnet(real, device=runtime.device)
    pipe = latent_diffusion.load(model, device=runtime.device)
    seeds = list(range(tuned.seed, tuned.seed + n))

    def against_test(images: np.ndarray) -> dict[str, float]:
        values = features.alexnet(images, device=runtime.device)
        pair = distances.frechet_distance(values, reference), distances.kernel_distance(values, reference)
        return {name: round(value, 4) for name, value in zip(("fd_alexnet", "kid_alexnet"), pair, strict=True)}

    rows = {}
    for name, (p, template, precision) in recipes.items():
        p = p.model_copy(update={"batch_size": min(p.batch_size, n)})  # a batch is filled up, which would cost time
        texts = prompts.drawn(prompts.prompts(known.manifest, template), seeds)
        start = time.perf_counter()
        drawn = latent_diffusion.draw(
            pipe, texts, seeds, p, size=real.shape[1], precision=precision, progress=_progress
        )[:, 0]
        seconds = time.perf_counter() - start
        rows[name] = {
            "guidance_scale": p.guidance_scale, "steps": p.steps, "scheduler": p.scheduler, "batch_size": p.batch_size,
            "precision": precision, "prompts": any(texts),
            "network_evaluations": sampling.evaluations(texts, p),
            "seconds": round(seconds, 1), "images_per_second": round(n / seconds, 4), **against_test(drawn),
        }  # fmt: skip
        print(name, rows[name], flush=True)
    some = np.sort(np.random.default_rng(0).choice(len(known), n, replace=False))
    result = {
        "n": n, "test": len(real), "threads": torch.get_num_threads(), "device": runtime.device,
        **rows, "real_other_people": against_test(known.images[some]),
        "ratio": round(rows["tuned"]["images_per_second"] / rows["original"]["images_per_second"], 1),
    }  # fmt: skip
    measure.write("seed_recipe", result)
    print(f"the tuned recipe draws {result['ratio']} times as many images a second")


def _progress(starts, count: int):
    return _cli.progress(starts, "sampled batches", count)


if __name__ == "__main__":
    _cli.run(main)
