"""What makes a model heed the label of its prompt, and draw lesions: each part left out alone, on VALIDATION people.

python -m benchmarks.labels           (after `dvc repro`, with masks; then: python -m benchmarks.labels --table)

The same slices, latents, seeds and base for all; no snapshot is chosen, so that all have the same steps. A lesion is
what the model's own decoder draws in the mask.
"""

import json
import tempfile
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer

from benchmarks import measure
from stages import _cli, finetune
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import distances, features, scorecard
from synthmri.generators import autoencoder, finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.training import sampling

SLICES = Path("data/slices")
LAST = "{contrast} {plane} brain MRI, level {level}, {label}"
COLUMNS = {
    "marked": "with a mask, asked for lesions", "marked_none": "asked for none", "area": "its area, px, lesions",
    "area_none": "none", "kid": "KID", "recall": "recall", "coverage": "coverage",
}  # fmt: skip


class Way(NamedTuple):
    """A training, by what it differs in from params.yaml; emphasis: whether the loss counts more in lesions."""

    finetune: dict = {}
    template: str | None = None
    emphasis: bool = True


WAYS = {
    "as in params.yaml": Way(),
    "label last": Way(template=LAST),
    "text encoder frozen": Way(finetune={"train_text_encoder": False}),
    "no place counts more": Way(emphasis=False),
    "none of the three": Way({"train_text_encoder": False}, LAST, False),
}


def main(
    epochs: Annotated[int, typer.Option(min=1, help="of each training")] = 6,
    n: Annotated[int, typer.Option(min=8, help="images of each")] = 120,
    guidance: Annotated[list[float], typer.Option(min=1, help="guidance scales")] = (1.0, 2.0),
    show: Annotated[bool, typer.Option("--table", help="print the table of the result file, measure nothing")] = False,
):
    """Write benchmarks/results/labels.json."""
    if show:
        print(table(json.loads((measure.RESULTS / "labels.json").read_text(encoding="utf-8"))))
        return
    if not Path("data/latents/lesions.npy").is_file():
        raise UserError("data/latents holds no lesions.npy; run `dvc repro` on slices with masks first")
    precision = _cli.precision(_cli.start())
    train, val = (imageset.read(SLICES / part) for part in ("train", "val"))
    if not {"lesions", "none"} <= set(train.manifest["label"]):
        raise UserError("the slices have other labels than lesions and none; set data.label_from to mask")
    reference = features.extract(scorecard.JUDGE, np.array(val.images))
    found = {"real validation slices": _lesions(np.array(val.masks), val.manifest["label"])}
    with tempfile.TemporaryDirectory() as folder:
        for number, (title, way) in enumerate(WAYS.items()):
            pipe, texts = trained(train, way, epochs, precision, Path(folder) / f"{number}.pt")
            for scale in guidance:
                made, of = drawn(pipe, train, texts, n, scale, precision)
                values = features.extract(scorecard.JUDGE, made[:, 0])
                prdc = distances.precision_recall_density_coverage(reference, values)
                scores = _lesions(made[:, 1], of) | {"kid": distances.kernel_distance(values, reference)} | prdc
                row = f"{title}, guidance {scale:g}"
                found[row] = {key: float(f"{scores[key]:.3g}") for key in COLUMNS}
                print(row, found[row], flush=True)
    measure.write("labels", {"epochs": epochs, "n": n, "val_slices": len(val), "ways": found})


def trained(train: imageset.ImageSet, way: Way, epochs: int, precision: str, checkpoint: Path):
    """The pipeline and the prompts of the training slices."""
    words = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
    texts = prompts.prompts(train.manifest, words.model_copy(update={"template": way.template or words.template}))
    p = params.read(_cli.PARAMS, "finetune", finetuning.Finetune)
    lessons = finetune.lessons(Path("data/latents"), texts, train.manifest)
    pipe = latent_diffusion.load("models/base")
    pipe.vae = autoencoder.load(Path("models/autoencoder"))
    latent_diffusion.mark_labels(pipe, train.manifest["label"])
    finetuning.finetune(
        pipe, lessons if way.emphasis else lessons._replace(emphasis=None),
        p.model_copy(update={"epochs": epochs} | way.finetune), seed=_cli.seed(), checkpoint=checkpoint,
        precision=precision,
    )  # fmt: skip
    return pipe, texts


def drawn(pipe, train: imageset.ImageSet, texts: list[str], n: int, guidance: float, precision: str):
    """uint8 (n, 2, S, S), images and masks, and the labels that were asked for."""
    p = params.read(_cli.PARAMS, "sample", sampling.Sample).model_copy(update={"guidance_scale": guidance})
    seeds = list(range(p.seed, p.seed + n))
    planes = latent_diffusion.draw(
        pipe, prompts.drawn(texts, seeds), seeds, p, size=train.images.shape[1], precision=precision
    )
    return planes, prompts.drawn(list(train.manifest["label"]), seeds)


def _lesions(made: np.ndarray, labels) -> dict[str, float]:
    """Of masks (N, S, S): how many of either label are not empty, and their mean area in px."""
    area, ill = (made > 0).sum(axis=(1, 2)), np.asarray(labels) == "lesions"
    return {
        "marked": float((area[ill] > 0).mean()), "marked_none": float((area[~ill] > 0).mean()),
        "area": float(area[ill].mean()), "area_none": float(area[~ill].mean()),
    }  # fmt: skip


def table(result: dict) -> str:
    """Markdown: a row for each training and guidance."""
    rows = [
        (name, *(f"{scores[key]:.3g}" if key in scores else "" for key in COLUMNS))
        for name, scores in result["ways"].items()
    ]
    return measure.tables.markdown(("", *COLUMNS.values()), rows)


if __name__ == "__main__":
    _cli.run(main)
