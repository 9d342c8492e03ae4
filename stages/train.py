"""Train a baseline on the training slices: `python -m stages.train --help`.

Resumable: checkpoints go to .ckpt/train, under a hash of everything that the result depends on, until the outputs
stand.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files, _launch, _unfinished, _watch
from synthmri import generators, imageset, params
from synthmri.errors import UserError
from synthmri.generators.baseline import Train
from synthmri.training import distributed, sampling, views
from synthmri.training.snapshots import Progression, Store


def main(
    model: Annotated[str, typer.Option(help="a model of section baselines of params.yaml")],
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices")],
    out: Annotated[Path, typer.Option(help="folder of the trained model")],
    snapshots: Annotated[Path, typer.Option(help="NPY of images of the same seeds over the training")],
    log: Annotated[Path, typer.Option(help="CSV: step and losses")],
    effort: Annotated[Path, typer.Option(help="JSON: parameters, images seen, floating-point operations")],
    start: Annotated[Path, typer.Option(help="pretrained weights, where train.pretrained")],
    checkpoints: Annotated[Path, typer.Option(help="where an interrupted run goes on from")] = Path(".ckpt/train"),
):
    """Train by section baselines.MODEL."""
    runtime = _launch.start()
    seed, precision = _cli.seed(), _cli.precision(runtime)
    generator = generators.find(model)
    p = params.read(_cli.PARAMS, f"baselines.{model}", generator.Params)
    how = params.read(_cli.PARAMS, "train", Train)
    pretrained = how.pretrained
    progress = params.read(_cli.PARAMS, "progression", Progression)
    distributed.check(p.batch_size, f"baselines.{model}.batch_size")
    drawing = sampling.Sample(
        n=progress.n, seed=0, steps=1, guidance_scale=1.0, scheduler="ddpm", batch_size=min(progress.n, 16)
    )
    settings = (
        seed, p.model_dump(), how.model_dump(), progress.model_dump(exclude={"points"}), runtime.model_dump(),
        precision, distributed.count(),
    )  # fmt: skip
    with (
        _unfinished.checkpoints(checkpoints / model, [images], *settings, *[start] * pretrained) as unfinished,
        _watch.watching(model) as watch,
    ):
        store = Store(unfinished / "snapshots")

        def snapshot(point: int, trained) -> None:
            drawn = trained.sample(range(progress.n), drawing, precision=precision)
            if distributed.is_main():
                store.put(point, drawn)
                watch.show(drawn)

        with _cli.counter(f"training {model}", p.steps, watch.tick) as tick:
            train = imageset.read(images)
            trained, history, operations = generator.fit(
                np.array(train.images), p, seed=seed, points=progress.baseline_points,
                checkpoint=unfinished / "train.pt", device=runtime.device, precision=precision,
                tick=tick, snapshot=snapshot, start=start if pretrained else None,
                image_px=how.image_px, mirrors=views.mirrors(train.manifest),
            )  # fmt: skip
        if not distributed.is_main():
            return
        stack = store.stack(progress.baseline_points + 1)
        if np.ptp(stack[-1]) == 0:
            raise UserError(
                f"the trained {model} draws pictures of one grey level; change baselines.{model} (a lower "
                "learning_rate, another width) and run `dvc repro`"
            )
        with (
            _files.replacing(out) as folder,
            _files.replacing(snapshots) as strip,
            _files.replacing(log) as table,
            _files.replacing(effort) as numbers,
        ):
            trained.save(folder)
            _files.save_array(strip, stack)
            lines = [
                ",".join([str(step), *(f"{value:.6g}" for value in row.values())]) for step, row in enumerate(history)
            ]
            table.write_text("\n".join([",".join(["step", *history[0]]), *lines]) + "\n", encoding="utf-8")
            _files.write_metrics(
                numbers,
                {
                    "drawn_px": trained.px,
                    "parameters": sum(weight.numel() for weight in trained.network.parameters()),
                    "images_seen": p.steps * p.batch_size,
                    "teraflop": operations / 1e12,
                    "precision": precision,
                }
                | (_files.pretraining(start) if pretrained else {}),
            )
        watch.keep(out)


if __name__ == "__main__":
    _cli.run(main)
