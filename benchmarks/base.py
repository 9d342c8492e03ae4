"""How near the base's own samples, before any fine-tuning, come to the simulated heads that it was trained on.

python -m benchmarks.base --model pretrained/base

The floor is the distance between two sets of such heads, none of which was trained on: every head is drawn anew, from
seeds that training does not use. `ratio_*` is the samples' distance to one of the sets against that floor, by either
extractor.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from benchmarks import measure
from stages import _cli
from synthmri import params, streams
from synthmri.evaluation import distances, features
from synthmri.generators import autoencoder, latent_diffusion
from synthmri.reporting import plots
from synthmri.scans import prompts
from synthmri.simulation import pretraining
from synthmri.training import sampling

SEED = 900_000  # of the heads


def simulated_slices(run: pretraining.Pretrain, n: int, seed: int) -> tuple[np.ndarray, list[str]]:
    """uint8 (n, H, W) of the distribution that the UNet learns, and the prompts that say what each is."""
    heads = pretraining.draw_heads(run, n, streams.generator(seed, "benchmark"))
    return heads.images, prompts.prompts(heads.manifest, prompts.Prompt(template=run.unet.template, token=""))


def main(
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")] = Path("pretrained/base"),
    n: Annotated[int, typer.Option(min=8, help="images of each set")] = 200,
    steps: Annotated[int | None, typer.Option(min=1, help="denoising steps; else as section `sample` says")] = None,
    sheet: Annotated[Path | None, typer.Option(help="PNG to write: some of the heads beside some samples")] = None,
):
    """Write benchmarks/results/base.json."""
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    run = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain)
    p = params.read(_cli.PARAMS, "sample", sampling.Sample)
    p = p.model_copy(update={"steps": steps or p.steps})
    first, texts = simulated_slices(run, n, SEED)
    second, _ = simulated_slices(run, n, 2 * SEED)
    pipe = latent_diffusion.load(model, device=runtime.device)

    def progress(starts, count):
        return _cli.progress(starts, "sampled batches", count)

    drawn = latent_diffusion.draw(
        pipe, texts, list(range(n)), p, size=run.image_size, precision=precision, progress=progress
    )[:, 0]
    rebuilt = autoencoder.reconstruct(pipe.vae, second, batch_size=16, precision=precision)
    sets = {"other heads": first, "rebuilt": rebuilt, "samples": drawn}
    rows: dict[str, dict[str, float]] = {name: {} for name in sets}
    for extractor in ("effnet", "alexnet"):
        reference = features.extract(extractor, second, device=runtime.device)
        for name, images in sets.items():
            values = features.extract(extractor, images, device=runtime.device)
            rows[name][f"fd_{extractor}"] = round(distances.frechet_distance(values, reference), 4)
            rows[name][f"kid_{extractor}"] = round(distances.kernel_distance(values, reference), 5)
    floor, made = rows["other heads"], rows["samples"]
    ratios = {
        f"ratio_{extractor}": round(made[f"fd_{extractor}"] / floor[f"fd_{extractor}"], 2)
        for extractor in ("effnet", "alexnet")
    }
    measure.write("base", {"n": n, "steps": p.steps, "scheduler": p.scheduler, **rows, **ratios})
    if sheet:
        plots.save(plots.real_against_synthetic(first, drawn, title="simulated heads, never trained on"), sheet)


if __name__ == "__main__":
    _cli.run(main)
