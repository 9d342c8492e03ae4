"""What keeps samples from covering what real slices show: each suspect changed alone, judged on VALIDATION people.

python -m benchmarks.variety          (after `dvc repro`; then: python -m benchmarks.variety --table)

Of the fine-tuned model as it lies in models/: the training slices as they are and through its autoencoder, which
bound what any UNet could reach; then samples, with other samplers, steps, guidance, prompts and seeds.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.ndimage import gaussian_filter

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.evaluation import distances, features, scorecard
from synthmri.generators import latent_diffusion
from synthmri.scans import prompts
from synthmri.training import sampling

BLUR_PX = 0.7  # standard deviation
COLUMNS = {
    "fd": "FD", "kid": "KID", "precision": "precision", "recall": "recall", "density": "density",
    "coverage": "coverage",
}  # fmt: skip
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
