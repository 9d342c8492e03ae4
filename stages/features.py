"""Features of an ImageSet by every extractor: `python -m stages.features --help`."""

import os
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files, _workers
from synthmri import imageset, params
from synthmri.evaluation import features, scorecard

PIECE = 2048  # images, about: what a worker does at a time


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to read")],
    extractors: Annotated[Path, typer.Option(help="folder of weights that section `evaluate` names; DVC watches it")],
    out: Annotated[Path, typer.Option(help="folder to write: effnet.npy, alexnet.npy, ... of float32 (N, D)")],
) -> None:
    """EfficientNet-Lite0 and AlexNet always, Inception and a further one where section `evaluate` names them."""
    runtime = _cli.start()
    evaluate = params.read(_cli.PARAMS, "evaluate", scorecard.Evaluate)
    count = len(imageset.read(images))
    names = ["effnet", "alexnet"]
    if evaluate.inception_weights not in ("", "download"):  # what is downloaded is of one hash
        _files.watched(evaluate.inception_weights, extractors, "evaluate.inception_weights")
    if evaluate.inception_weights:
        names.append("inception")
    if evaluate.features:
        if Path(evaluate.features).exists():  # else an id of the hub, which may name its commit
            _files.watched(evaluate.features, extractors, "evaluate.features")
        names.append("further")
    # Whole batches of every extractor (EfficientNet takes four on a CPU), so that the pieces do not show in the bytes.
    size = 16 * evaluate.batch_size * max(1, PIECE // (16 * evaluate.batch_size))
    starts = range(0, count, size)
    piece = partial(_piece, images=images.absolute(), size=size, runtime=runtime, evaluate=evaluate)
    threads = runtime.threads if runtime.device == "cpu" else os.cpu_count()  # a GPU is one process's
    done = _workers.ordered(
        piece, [(name, start) for name in names for start in starts], *_workers.shared(threads),
        name=lambda task: f"images from {task[1]} on of {images}, by {task[0]}",
    )  # fmt: skip
    with _files.replacing(out) as folder:
        folder.mkdir()
        for name in _cli.progress(names, f"extractors over {images.name}"):
            first = next(done)
            with imageset.growing(folder / f"{name}.npy", first.shape[1:], np.float32) as append:
                append(first)
                for _ in starts[1:]:
                    append(next(done))


def _piece(
    task: tuple[str, int], *, images: Path, size: int, runtime: params.Runtime, evaluate: scorecard.Evaluate
) -> np.ndarray:
    """Features by the extractor of that name of `size` images from that number on."""
    name, start = task
    _cli.set_threads(runtime.threads)
    pictures = imageset.read(images).images[start : start + size]
    return features.extract(
        name, pictures, batch=evaluate.batch_size, device=runtime.device,
        weights=evaluate.inception_weights, further=evaluate.features,
    )  # fmt: skip


if __name__ == "__main__":
    _cli.run(main)
