"""Which weight of each noise level serves few steps of fine-tuning best, judged on VALIDATION people of a real set.

REAL_MRI=folder python -m benchmarks.weighting            (then: python -m benchmarks.weighting --table)

The same slices, steps, seeds and base for each form of `training.denoising_loss.weight`; the last is the form for x0,
min(SNR, 5) / (SNR + 1) of v, which leaves the levels where sampling starts without a weight. Scores are those of the
judge's features. The set, lgg-flair, is 74 people with tumours (Buda 2019, CC BY-NC-SA): numbers of it may be shown.
"""

import json
import os
import tempfile
from pathlib import Path
from typing import Annotated
from unittest.mock import patch

import numpy as np
import torch
import typer

from benchmarks import measure, pays
from stages import _cli
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import distances, features, scorecard
from synthmri.generators import autoencoder, finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.training import denoising_loss, sampling

SET = "lgg-flair"
DATA = {
    "source": "raw", "label_from": "names", "contrasts": [], "classes": ["tumour", "none"],
    "subjects": "confirmed",
    "assume": {"contrast": "FLAIR", "plane": "axial"},
}  # fmt: skip
COLUMNS = {"kid": "KID", "precision": "precision", "recall": "recall", "density": "density", "coverage": "coverage"}


def of_x0(scheduler, snr_gamma: float) -> torch.Tensor:
    """min(SNR, 5) / (SNR + 1), float32 (T,)."""
    snr = scheduler.alphas_cumprod / (1 - scheduler.alphas_cumprod)
    return snr.clamp_max(5.0) / (snr + 1)


FORMS = {  # form -> finetune.snr_gamma, and what takes the place of `denoising_loss.weight`
    "every level alike": (0.0, denoising_loss.weight),
    "min(SNR + 1, 6) / (SNR + 1)": (5.0, denoising_loss.weight),
    "min(SNR, 5) / (SNR + 1)": (0.0, of_x0),
}


def main(
    epochs: Annotated[int, typer.Option(min=1)] = 5,
    n: Annotated[int, typer.Option(min=8, help="samples of each")] = 200,
    seeds: Annotated[int, typer.Option(min=1, help="trainings of each form, with seeds from 0")] = 1,
    show: Annotated[bool, typer.Option("--table", help="print the table of the result file, measure nothing")] = False,
):
    """Write benchmarks/results/weighting.json."""
    if show:
        print(table(json.loads((measure.RESULTS / "weighting.json").read_text(encoding="utf-8"))))
        return
    root = os.environ.get("REAL_MRI")
    if not root:
        raise UserError(f"REAL_MRI is not set; name the folder of real slices, which holds {SET}")
    precision = _cli.precision(_cli.start())
    with tempfile.TemporaryDirectory() as folder:
        sets = pays.preprocessed(Path(root) / SET, DATA, Path(folder))
        train, val = imageset.read(sets / "train"), imageset.read(sets / "val")
        result = compared(train, val, Path(folder), epochs, n, seeds, precision)
    measure.write("weighting", result | {"epochs": epochs, "n": n, "train_slices": len(train), "val_slices": len(val)})


def compared(train, val, folder: Path, epochs: int, n: int, seeds: int, precision: str) -> dict:
    """Form -> means over trainings of the scores against the validation slices."""
    texts = prompts.prompts(train.manifest, params.read(_cli.PARAMS, "prompt", prompts.Prompt))
    p = params.read(_cli.PARAMS, "finetune", finetuning.Finetune)
    drawing = params.read(_cli.PARAMS, "sample", sampling.Sample)
    images, reference = np.array(train.images), features.extract(scorecard.JUDGE, np.array(val.images))
    vae = autoencoder.load(Path(p.base_model) / "vae")
    views = [autoencoder.encode(vae, view, batch_size=16, precision=precision) for view in (images, images[:, :, ::-1])]
    mean, std = (np.stack([view[part] for view in views], axis=1) for part in (0, 1))
    of_samples = list(range(drawing.seed, drawing.seed + n))
    forms = {}
    for number, (form, (snr_gamma, weight)) in enumerate(FORMS.items()):
        scores = []
        for seed in range(seeds):
            pipe = latent_diffusion.load(p.base_model)
            how = p.model_copy(update={"epochs": epochs, "snr_gamma": snr_gamma, "train_text_encoder": True})
            with patch.object(denoising_loss, "weight", weight):
                finetuning.finetune(
                    pipe,
                    finetuning.Lessons(mean, std, texts),
                    how,
                    seed=seed,
                    checkpoint=folder / f"{number}-{seed}.pt",
                    precision=precision,
                )
            made = latent_diffusion.draw(
                pipe, prompts.drawn(texts, of_samples), of_samples, drawing, size=images.shape[1], precision=precision
            )[:, 0]
            values = features.extract(scorecard.JUDGE, made)
            kid = {"kid": distances.kernel_distance(values, reference)}
            scores.append(kid | distances.precision_recall_density_coverage(reference, values))
            print(form, seed, scores[-1])
        forms[form] = {name: float(f"{np.mean([each[name] for each in scores]):.3g}") for name in COLUMNS}
    return {"forms": forms, "trainings": seeds, "steps": epochs * -(-len(texts) // p.batch_size)}


def table(result: dict) -> str:
    lines = ["| weight of v's error | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for form, scores in result["forms"].items():
        lines.append(f"| {form} | " + " | ".join(f"{scores[name]:g}" for name in COLUMNS) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    _cli.run(main)
