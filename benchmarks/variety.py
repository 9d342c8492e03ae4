"""What keeps samples from covering what real slices show: each suspect changed alone, judged on VALIDATION people.

python -m benchmarks.variety          (after `dvc repro`; then: python -m benchmarks.variety --table)

Of the fine-tuned model as it lies in models/: the training slices as they are and through its autoencoder, which
bound what any UNet could reach; these with noise up to some level, denoised by the UNet from there (Meng 2022, arXiv
2108.01073), which tells the levels at which it loses them; then samples, with other samplers, steps, guidance, prompts
and seeds.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy.ndimage import gaussian_filter

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.evaluation import distances, features, scorecard
from synthmri.generators import autoencoder, latent_diffusion
from synthmri.scans import prompts
from synthmri.training import sampling
from synthmri.training.precision import autocast

BLUR_PX = 0.7  # standard deviation
COLUMNS = {
    "fd": "FD", "kid": "KID", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage",
}  # fmt: skip
LEVELS = (200, 400, 600, 800)  # of 1000: timesteps that real latents are noised to
CHANGES = {  # of section sample
    "50 steps": {"steps": 50},
    "DPM-Solver++ without noise": {"scheduler": "dpmsolver++"},
    "Euler": {"scheduler": "euler"},
    "guidance 2": {"guidance_scale": 2.0},
    "guidance 4": {"guidance_scale": 4.0},
}


def main(
    name: Annotated[str, typer.Option(help="what these slices are, in the file and the table")] = "simulated",
    slices: Annotated[Path, typer.Option(help="folder of the ImageSets train and val")] = Path("data/slices"),
    model: Annotated[Path, typer.Option(help="pipeline fine-tuned on these")] = Path("models/latent_diffusion"),
    n: Annotated[int, typer.Option(min=8, help="images of each set, at most")] = 200,
    show: Annotated[bool, typer.Option("--table", help="print the tables of the result file, measure nothing")] = False,
):
    """Write benchmarks/results/variety.json; results of other slices stay in it."""
    file = measure.RESULTS / "variety.json"
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if show:
        print(table(known))
        return
    precision = _cli.precision(_cli.start())
    train, val = imageset.read(slices / "train"), imageset.read(slices / "val")
    judge = features.extract(scorecard.JUDGE, np.array(val.images))
    found = {}
    for title, made in sets(train, model, n, precision):
        values = features.extract(scorecard.JUDGE, made)
        scores = {
            "fd": distances.frechet_distance(values, judge),
            "kid": distances.kernel_distance(values, judge),
        } | distances.precision_recall_density_coverage(judge, values)
        found[title] = {column: float(f"{scores[column]:.3g}") for column in COLUMNS}
        print(title, found[title], flush=True)
    known.pop("machine", None)
    measure.write("variety", known | {name: {"val_slices": len(val), "n": n, "sets": found}})


def sets(train: imageset.ImageSet, model: Path, n: int, precision: str) -> Iterator[tuple[str, np.ndarray]]:
    """(what it is, uint8 (N, S, S))."""
    pipe = latent_diffusion.load(model)
    drawing = params.read(_cli.PARAMS, "sample", sampling.Sample)
    texts = prompts.prompts(train.manifest, params.read(_cli.PARAMS, "prompt", prompts.Prompt))
    real = imageset.rows(train.images, imageset.evenly(len(train), n))
    yield "training slices", real
    yield f"these, blurred by {BLUR_PX} px", imageset.to_uint8(gaussian_filter(real / 255, (0, BLUR_PX, BLUR_PX)))
    yield (
        "these, through the autoencoder",
        latent_diffusion.LatentDiffusion(pipe).reconstruct(real, batch_size=16, precision=precision),
    )

    words = [texts[i] for i in imageset.evenly(len(train), n)]
    for level in LEVELS:
        yield f"these, noised to level {level} and denoised", noised(pipe, real, words, level, drawing, precision)

    def drawn(change: dict, words: list[str], first: int) -> np.ndarray:
        seeds = list(range(first, first + n))
        p = drawing.model_copy(update=change)
        return latent_diffusion.draw(
            pipe, prompts.drawn(words, seeds), seeds, p, size=real.shape[1], precision=precision
        )[:, 0]

    yield "samples", drawn({}, texts, drawing.seed)
    yield "other seeds", drawn({}, texts, drawing.seed + n)
    for title, change in CHANGES.items():
        yield title, drawn(change, texts, drawing.seed)
    yield "empty prompts", drawn({}, [""] * len(texts), drawing.seed)


@torch.no_grad()
def noised(pipe, real: np.ndarray, texts: list[str], level: int, p: sampling.Sample, precision: str) -> np.ndarray:
    """uint8 (N, S, S): what becomes of real slices whose latents are noised to that timestep and denoised."""
    out = []
    for start in range(0, len(real), p.batch_size):
        rows = slice(start, start + p.batch_size)
        mean, _ = autoencoder.encode(pipe.vae, real[rows], batch_size=p.batch_size, precision=precision)
        x = latent_diffusion.scaled(pipe, torch.from_numpy(mean))
        generators = [torch.Generator().manual_seed(p.seed + start + i) for i in range(len(x))]
        noise = torch.stack([torch.randn(x.shape[1:], generator=each) for each in generators])
        scheduler = latent_diffusion.new_scheduler(pipe, "sde-dpmsolver++")
        sampling.set_steps(scheduler, p.steps)
        steps = scheduler.timesteps[scheduler.timesteps <= max(level, scheduler.timesteps[-1])]
        x = scheduler.add_noise(x, noise, steps[:1].expand(len(x)))
        scheduler.set_begin_index(len(scheduler.timesteps) - len(steps))
        states = latent_diffusion.embed(pipe, texts[rows])
        with autocast(pipe.unet.device, precision):
            for t in steps:
                predicted = pipe.unet(x, t, encoder_hidden_states=states).sample.float()
                x = scheduler.step(predicted, t, x, generator=generators).prev_sample
            decoded = pipe.vae.decode(x / pipe.vae.config.scaling_factor).sample
        out.append(autoencoder.to_planes(decoded.float() / 2 + 0.5, autoencoder.draws_masks(pipe.vae))[:, 0])
    return np.concatenate(out)


def table(result: dict) -> str:
    """Markdown, a table for each set of slices."""
    parts = []
    for name, found in result.items():
        if name == "machine":
            continue
        parts.append(f"{name}: N = {found['n']}, against {found['val_slices']} validation slices.")
        parts.append(measure.columns("images", found["sets"], COLUMNS))
    return "\n\n".join(parts)


if __name__ == "__main__":
    _cli.run(main)
