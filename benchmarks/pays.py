"""Does the base model pay? Fine-tuned from it against from random weights of its UNet: same slices, steps, seeds,
autoencoder and text encoder.

REAL_MRI=folder python -m benchmarks.pays

On the FLAIR volumes of open-ms and on 500 of the t1ce-tumor pictures; takes some 15 minutes on two cores.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
import yaml

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import distances, features
from synthmri.generators import autoencoder, autoencoder_training, finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.training import perceptual, sampling

SETS = {  # what differs from params.yaml
    "open-ms": {
        "source": "raw",
        "label_from": "names",
        "contrasts": ["FLAIR"],
        "split": {"train": 0.4, "val": 0.2, "test": 0.4},
    },
    "t1ce-tumor": {
        "source": "raw",
        "subjects": "confirmed",  # nobody knows whose each picture is
        "label_from": "names",
        "contrasts": [],
        "classes": ["glioma", "meningioma", "pituitary"],
    },
}
MOST_TRAIN = 500


def preprocessed(raw: Path, data: dict, folder: Path) -> Path:
    """The ImageSets of `raw`, by the stage that the pipeline runs, under parameters of its own."""
    tree = yaml.safe_load(_cli.PARAMS.read_text(encoding="utf-8"))
    tree["data"] |= data
    (folder / _cli.PARAMS.name).write_text(yaml.safe_dump(tree), encoding="utf-8")
    subprocess.run(
        [
            sys.executable, "-m", "stages.preprocess", "--raw", raw.resolve(), "--out", "slices",
            "--metrics", "data.json", "--sheet", "slices.png",
        ],
        cwd=folder, env=os.environ | {"PYTHONPATH": os.getcwd()}, check=True,
    )  # fmt: skip
    return folder / "slices"


def main(
    only: Annotated[str, typer.Option(help="one of the sets; all where it is empty")] = "",
    steps: Annotated[int, typer.Option(min=1, help="least steps of fine-tuning; whole epochs are trained")] = 200,
):
    """Write benchmarks/results/pays.json."""
    root = os.environ.get("REAL_MRI")
    if not root:
        raise UserError("REAL_MRI is not set; name the folder of real volumes, which holds open-ms and t1ce-tumor")
    precision = _cli.precision(_cli.start())
    file = measure.RESULTS / "pays.json"
    result = json.loads(file.read_text(encoding="utf-8")) if only and file.is_file() else {}
    for name in [only] if only else SETS:
        with tempfile.TemporaryDirectory() as folder:
            sets = preprocessed(Path(root) / name, SETS[name], Path(folder))
            result[name] = both(
                imageset.read(sets / "train"), imageset.read(sets / "test"), Path(folder), steps, precision
            )
        measure.write("pays", result)


def both(train: imageset.ImageSet, test: imageset.ImageSet, folder: Path, steps: int, precision: str) -> dict:
    """FD and KID to the test slices after training, from the base and from random weights of its UNet."""
    rows = imageset.evenly(len(train), MOST_TRAIN)
    images, manifest = np.array(train.images[rows]), train.manifest.iloc[rows]
    texts = prompts.prompts(manifest, params.read(_cli.PARAMS, "prompt", prompts.Prompt))
    p, seed = params.read(_cli.PARAMS, "finetune", finetuning.Finetune), _cli.seed()
    p = p.model_copy(update={"epochs": -(-steps // -(-len(texts) // p.batch_size))})
    how = params.read(_cli.PARAMS, "adapt", autoencoder_training.Adapt)
    drawing = params.read(_cli.PARAMS, "sample", sampling.Sample)
    n = min(drawing.n, len(train), len(test))
    reference = features.alexnet(np.array(test.images), batch=16)

    vae = autoencoder.load(Path(p.base_model) / "vae")
    autoencoder_training.adapt(
        vae,
        images,
        "decoder",
        how,
        perceptual.lpips_model(),
        seed=seed,
        checkpoint=folder / "adapt.pt",
        precision=precision,
    )
    views = [autoencoder.encode(vae, view, batch_size=16, precision=precision) for view in (images, images[:, :, ::-1])]
    mean, std = (np.stack([view[part] for view in views], axis=1) for part in (0, 1))

    def against_test(pipe) -> dict[str, float]:
        seeds = list(range(drawing.seed, drawing.seed + n))
        made = latent_diffusion.draw(
            pipe, prompts.drawn(texts, seeds), seeds, drawing, size=images.shape[1], precision=precision
        )[:, 0]
        values = features.alexnet(made, batch=16)
        return {
            "fd_alexnet": distances.frechet_distance(values, reference),
            "kid_alexnet": distances.kernel_distance(values, reference),
        }

    outcome = {}
    for start in ("base", "scratch"):
        pipe = latent_diffusion.load(p.base_model)
        pipe.vae = vae
        if start == "scratch":
            torch.manual_seed(seed)
            pipe.unet = type(pipe.unet).from_config(pipe.unet.config)
        finetuning.finetune(
            pipe,
            finetuning.Lessons(mean, std, texts),
            p,
            seed=seed,
            checkpoint=folder / f"{start}.pt",
            precision=precision,
        )
        outcome[start] = against_test(pipe)
    real = features.alexnet(images[np.random.default_rng(0).choice(len(images), min(n, len(images)), replace=False)])
    return {
        "ratio": outcome["scratch"]["fd_alexnet"] / outcome["base"]["fd_alexnet"],
        "from_base": outcome["base"],
        "from_scratch": outcome["scratch"],
        "floor_fd_alexnet": distances.frechet_distance(real, reference),
        "train_slices": len(images),
        "test_slices": len(test),
        "n": n,
        "epochs": p.epochs,
        "steps": p.epochs * -(-len(texts) // p.batch_size),
    }


if __name__ == "__main__":
    _cli.run(main)
