"""Adapt the autoencoder of the base model to the training slices, before anything is encoded with it.

Resumable: a checkpoint goes to .ckpt/adapt every 100 steps, under a hash of everything that the result depends on,
until the outputs stand.
"""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files, _launch, _unfinished, _watch
from synthmri import imageset, params
from synthmri.evaluation import pairs
from synthmri.generators import autoencoder, autoencoder_training, finetuning, latent_diffusion
from synthmri.training import distributed, perceptual

MOST_IMAGES = 64  # of the validation slices, at even steps: what is judged by them is far larger than their scatter


def main(
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    validation: Annotated[Path, typer.Option(help="ImageSet of the validation slices, which decide")],
    base: Annotated[Path, typer.Option(help="pipeline whose autoencoder is adapted")],
    out: Annotated[Path, typer.Option(help="folder of the autoencoder, in diffusers' format")],
    metrics: Annotated[Path, typer.Option(help="JSON: reconstruction of validation slices before and after")],
    checkpoints: Annotated[Path, typer.Option(help="where an interrupted run goes on from")] = Path(".ckpt/adapt"),
):
    """Train by section `adapt` what finetune.autoencoder names; kept only if it rebuilds validation slices better."""
    runtime = _launch.start()
    seed, precision = _cli.seed(), _cli.precision(runtime)
    part = params.read(_cli.PARAMS, "finetune", finetuning.Finetune).autoencoder
    p = params.read(_cli.PARAMS, "adapt", autoencoder_training.Adapt)
    distributed.check(p.batch_size, "adapt.batch_size")
    train, val = imageset.read(images), imageset.read(validation)
    val = val.take(imageset.evenly(len(val), MOST_IMAGES))
    lpips = perceptual.lpips_model(device=runtime.device)

    def measure(vae) -> dict[str, float]:
        decoded, *masks = autoencoder.rebuilt(
            vae, val.images, batch_size=p.batch_size, precision=precision
        ).swapaxes(0, 1)  # fmt: skip
        values = pairs.resemblance(decoded, val.images, lpips, batch=p.batch_size)
        l1 = np.abs(decoded.astype(float) - val.images).mean() / 127.5
        values["loss"] = float(l1) + p.perceptual_weight * values["lpips"]
        return values | ({"dice": pairs.dice(masks[0], val.masks)} if masks and val.masks is not None else {})

    vae = latent_diffusion.load(base, device=runtime.device).vae
    before = after = measure(vae)
    settings = part, seed, p.model_dump(), runtime.model_dump(), precision, distributed.count(), base
    with (
        _unfinished.checkpoints(checkpoints, [images], *settings) as unfinished,
        _watch.watching("autoencoder") as watch,
    ):
        if part != "none":
            with _cli.counter(f"adapting: {part}", p.steps, watch.tick) as tick:
                autoencoder_training.adapt(
                    vae, train.images, part, p, lpips,
                    lesions=train.masks, seed=seed, precision=precision, checkpoint=unfinished / "adapt.pt", tick=tick,
                )  # fmt: skip
            after = measure(vae)
            if after["loss"] >= before["loss"]:
                print("the adapted autoencoder rebuilds validation slices no better: the base's stays", file=sys.stderr)
                vae, after = latent_diffusion.load(base).vae, before
        if not distributed.is_main():
            return
        with _files.replacing(out) as folder, _files.replacing(metrics) as file:
            vae.save_pretrained(folder, safe_serialization=True)
            _files.forget_origin(folder)
            _files.write_metrics(file, {"n": float(len(val)), "before": before, "after": after})


if __name__ == "__main__":
    _cli.run(main)
