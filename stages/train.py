"""Train a baseline on the training slices: `python -m stages.train --help`.

Resumable: checkpoints go to .ckpt/train, under a hash of everything that the result depends on.
"""

import importlib
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files, _launch
from synthmri import imageset, params
from synthmri.errors import UserError
from synthmri.training import distributed
from synthmri.training.snapshots import Progression, Store


def main(
    model: Annotated[str, typer.Option(help="vae, dcgan, ddpm or unet_gan")],
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    out: Annotated[Path, typer.Option(help="folder of the trained model")],
    snapshots: Annotated[Path, typer.Option(help="NPY of images of the same seeds over the training")],
    log: Annotated[Path, typer.Option(help="CSV: step and losses")],
    effort: Annotated[Path, typer.Option(help="JSON: parameters, images seen, floating-point operations")],
    checkpoints: Annotated[Path, typer.Option(help="where an interrupted run goes on from")] = Path(".ckpt/train"),
):
    """Train by section baselines.MODEL."""
    runtime = _launch.start()
    precision = _cli.precision(runtime)
    from synthmri.training import loop

    code = importlib.import_module(f"synthmri.generators.{model}")
    p = params.read(_cli.PARAMS, f"baselines.{model}", code.Params)
    progress = params.read(_cli.PARAMS, "progression", Progression)
    key = _files.digest(
        _files.code(), model, p.model_dump(), progress.model_dump(exclude={"points", "steps"}), runtime.model_dump(),
        precision, distributed.count(), images,
    )  # fmt: skip
    distributed.check(p.batch_size, f"baselines.{model}.batch_size")
    store = Store(checkpoints / key)

    def snapshot(point: int, network) -> None:
        drawn = code.sample(network, range(progress.n), batch_size=progress.batch_size, precision=precision)
        if distributed.is_main():
            store.put(point, drawn)
        network.train()

    with _cli.counter(f"training {model}", p.steps) as tick:
        network, config, history, operations = code.fit(
            np.array(imageset.read(images).images), p, seed=runtime.seed, points=progress.baseline_points,
            checkpoint=checkpoints / f"{key}.pt", device=runtime.device, precision=precision,
            tick=tick, snapshot=snapshot,
        )  # fmt: skip
    if not distributed.is_main():
        return
    stack = store.stack(progress.baseline_points + 1)
    if np.ptp(stack[-1]) == 0:
        raise UserError(
            f"the trained {model} draws pictures of one grey level; change baselines.{model} (a lower learning_rate, "
            "another width) and run `dvc repro`"
        )
    with (
        _files.replacing(out) as folder,
        _files.replacing(snapshots) as strip,
        _files.replacing(log) as table,
        _files.replacing(effort) as numbers,
    ):
        loop.save_model(folder, network, config)
        _files.save_array(strip, stack)
        lines = [",".join([str(step), *(f"{value:.6g}" for value in row.values())]) for step, row in enumerate(history)]
        table.write_text("\n".join([",".join(["step", *history[0]]), *lines]) + "\n", encoding="utf-8")
        weights = sum(weight.numel() for weight in network.parameters())
        _files.write_metrics(
            numbers,
            {
                "parameters": weights,
                "images_seen": p.steps * p.batch_size,
                "teraflop": operations / 1e12,
                "precision": precision,
            },
        )


if __name__ == "__main__":
    _cli.run(main)
