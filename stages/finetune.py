"""Fine-tune the base model on the latents of the training slices.

Resumable: after every epoch a checkpoint goes to .ckpt/finetune, under a hash of everything that the result depends on,
until the outputs stand.
"""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stages import _cli, _files, _launch, _unfinished, _watch
from synthmri import imageset, params
from synthmri.evaluation import features, stopping
from synthmri.generators import autoencoder, finetuning, latent_diffusion
from synthmri.scans import prompts
from synthmri.training import distributed, masks, sampling
from synthmri.training import precision as formats
from synthmri.training.snapshots import Progression, Store, Verdict, epochs_shown

SNAPSHOT_STEPS = 6  # denoising steps of the snapshots


def main(
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    validation: Annotated[Path, typer.Option(help="ImageSet of the validation slices, by which a snapshot is kept")],
    validation_features: Annotated[Path, typer.Option(help="features of these")],
    latents: Annotated[Path, typer.Option(help="folder that `encode` wrote")],
    base: Annotated[Path, typer.Option(help="pipeline to start from")],
    vae: Annotated[Path, typer.Option(help="autoencoder that the latents are of")],
    out: Annotated[Path, typer.Option(help="folder of the fine-tuned pipeline")],
    log: Annotated[Path, typer.Option(help="CSV: step, loss, learning rate")],
    snapshots: Annotated[Path, typer.Option(help="NPY of images of the same seeds over the epochs")],
    effort: Annotated[Path, typer.Option(help="JSON: parameters, images seen, floating-point operations")],
    checkpoints: Annotated[Path, typer.Option(help="where an interrupted run goes on from")] = Path(".ckpt/finetune"),
):
    """Train by section `finetune`, with prompts by section `prompt`."""
    runtime = _launch.start()
    seed, precision = _cli.seed(), _cli.precision(runtime, scaler=True)
    p = params.read(_cli.PARAMS, "finetune", finetuning.Finetune)
    prompt = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
    progress = params.read(_cli.PARAMS, "progression", Progression)
    train = imageset.read(images)
    texts = prompts.prompts(train.manifest, prompt)
    learnt = lessons(latents, texts, train.manifest)
    pipe = latent_diffusion.load(base, device=runtime.device)
    pipe.vae = autoencoder.load(vae, device=runtime.device)
    pipe.unet.register_to_config(sample_size=learnt.mean.shape[-1])  # so that it draws this size unless told otherwise
    latent_diffusion.mark_labels(pipe, train.manifest.get("label", ()))
    shown = epochs_shown(p.epochs, progress.points)
    seeds = list(range(progress.n))
    drawing, _ = formats.choose(runtime.precision, runtime.device)  # no loss scaler is in that loop
    # Settings of its own: a change of section `sample` must not train the model again.
    fast = sampling.Sample(
        n=progress.n, seed=0, steps=SNAPSHOT_STEPS, guidance_scale=1.0, scheduler="sde-dpmsolver++",
        batch_size=min(progress.n, 16),
    )  # fmt: skip
    settings = (
        seed, p.model_dump(), prompt.model_dump(), progress.model_dump(exclude={"baseline_points"}),
        runtime.model_dump(), precision, distributed.count(), base, vae,
    )  # fmt: skip
    with (
        _unfinished.checkpoints(checkpoints, [latents, images, validation], *settings) as unfinished,
        _watch.watching("latent_diffusion") as watch,
    ):
        store = Store(unfinished / "snapshots")
        standing = _judge(train, validation, validation_features, store)

        def snapshot(epoch: int) -> Verdict | None:
            if epoch in shown:
                images_now = latent_diffusion.draw(
                    pipe, prompts.drawn(texts, seeds), seeds, fast, size=train.images.shape[1], precision=drawing
                )[:, 0]
                if distributed.is_main():
                    store.put(shown.index(epoch), images_now)
                    watch.show(images_now)
                return _verdict(standing, shown.index(epoch), progress.n, p.patience)
            return None

        per_epoch = -(-len(texts) // p.batch_size)
        with _cli.counter("fine-tuning steps", p.epochs * per_epoch, watch.tick) as tick:
            history, operations = finetuning.finetune(
                pipe, learnt, p, seed=seed, checkpoint=unfinished / "finetune.pt", token=prompt.token,
                device=runtime.device, precision=precision, tick=tick, snapshot=snapshot,
            )  # fmt: skip
        if not distributed.is_main():
            return
        adapters, trained = _trained(pipe, p)
        drawn = shown.index(len(history) // per_epoch) + 1
        kept = shown[stopping.kept(standing(drawn - 1), progress.n)]
        if kept < shown[drawn - 1]:
            print(
                f"epoch {kept} is kept of {shown[drawn - 1]}: what came later was no nearer to validation people, or "
                "copied",
                file=sys.stderr,
            )
        with (
            _files.replacing(out) as folder,
            _files.replacing(snapshots) as strip,
            _files.replacing(log) as table,
            _files.replacing(effort) as numbers,
        ):
            _files.save_pipeline(pipe, folder)
            if adapters:  # beside the weights that hold them already: small enough to share alone
                pipe.save_lora_weights(
                    folder / "lora", adapters["unet"], adapters.get("text_encoder"), safe_serialization=True
                )
            _files.save_array(strip, store.stack(drawn))
            lines = [f"{step},{loss:.6g},{rate:.6g}" for step, loss, rate in history]
            table.write_text("\n".join(["step,loss,learning_rate", *lines]) + "\n", encoding="utf-8")
            whole = sum(_count(part.parameters()) for part in (pipe.unet, pipe.vae, pipe.text_encoder))
            _files.write_metrics(
                numbers,
                {
                    "drawn_px": train.images.shape[1],
                    "parameters": whole,
                    "trained_parameters": _count(trained),
                    "images_seen": shown[drawn - 1] * len(texts),
                    "teraflop": operations / 1e12,
                    "epochs": p.epochs,
                    "epochs_trained": shown[drawn - 1],
                    "epoch_kept": kept,
                    "precision": precision,
                }
                | _files.pretraining(base),
            )
        watch.keep(out)


def lessons(latents: Path, texts: list[str], manifest: pd.DataFrame) -> finetuning.Lessons:
    """What `encode` wrote, with the prompts, and where the loss counts more of slices that have masks of lesions."""
    file, emphasis = latents / "lesions.npy", None
    if file.is_file() and (lesions := np.load(file)).any():
        emphasis = masks.emphasis(lesions, pd.to_numeric(manifest["depth_mm"], errors="coerce").to_numpy())
    return finetuning.Lessons(np.load(latents / "mean.npy"), np.load(latents / "std.npy"), texts, emphasis)


def _judge(
    train: imageset.ImageSet, validation: Path, validation_features: Path, store: Store
) -> Callable[[int], list[stopping.Snapshot]]:
    """A function of a point: the snapshots up to it. Those of before an interruption are judged from their images."""
    val = imageset.read(validation)
    theirs = _files.read_features(validation_features, len(val))[features.JUDGE]
    honest = functools.cache(lambda: stopping.honest(val.images, train.images))
    found: list[stopping.Snapshot] = []

    def standing(point: int) -> list[stopping.Snapshot]:
        for i in range(len(found), point + 1):
            images = store.get(i)
            found.append(
                stopping.snapshot(images, features.extract(features.JUDGE, images), train.images, theirs, honest())
            )
        return found[: point + 1]

    return standing


def _verdict(standing: Callable, point: int, count: int, patience: int) -> Verdict:
    """The main process judges, and all hear it."""
    best = stop = False
    if distributed.is_main():
        found = standing(point)
        best, stop = stopping.kept(found, count) == point, stopping.over(found, count, patience)
    return Verdict(bool(distributed.total(best)), bool(distributed.total(stop)))


def _trained(pipe, p: finetuning.Finetune) -> tuple[dict | None, list]:
    """The adapters, of method lora, which are then part of the weights; and all weights that were trained."""
    if p.method == "lora":
        adapters = finetuning.fuse(pipe)
        return adapters, [weight for part in adapters.values() for weight in part.values()]
    parts = [pipe.unet, pipe.text_encoder] if p.train_text_encoder else [pipe.unet]
    return None, [weight for part in parts for weight in part.parameters()]


def _count(weights) -> int:
    return sum(weight.numel() for weight in weights)


if __name__ == "__main__":
    _cli.run(main)
