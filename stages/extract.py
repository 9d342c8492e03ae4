"""Features of an ImageSet by every extractor: `python -m stages.extract --images data/slices/train --out FOLDER`."""

from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import common, workers
from synthmri import features, imageset, params, scores


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to read")],
    out: Annotated[Path, typer.Option(help="folder to write: alexnet.npy, effnet.npy, ... of float32 (N, D)")],
) -> None:
    """AlexNet and EfficientNet-Lite0 always, Inception where evaluate.inception_weights names its weights."""
    runtime = common.start()
    evaluate = params.read(common.PARAMS, "evaluate", scores.Evaluate)
    hands = params.read(common.PARAMS, "workers", workers.Workers)
    count = len(imageset.read(images))
    extractors = ["alexnet", "effnet"] + (["inception"] if evaluate.inception_weights else [])
    # Whole batches of every extractor (EfficientNet takes at most 16), so that the pieces do not show in the bytes.
    size = 16 * evaluate.batch_size * max(1, 4096 // (16 * evaluate.batch_size))
    starts = list(range(0, count, size))
    with common.replacing(out) as folder:
        folder.mkdir()
        for name in common.progress(extractors, f"extractors over {images.name}"):
            piece = partial(_piece, images=images.absolute(), size=size, name=name, runtime=runtime, evaluate=evaluate)
            done = workers.ordered(
                piece, starts, hands.extract, hands.cluster, name=lambda start: f"images {start} ff. of {images}"
            )
            first = next(done)
            with imageset.growing(folder / f"{name}.npy", first.shape[1:], np.float32) as append:
                append(first)
                for values in done:
                    append(values)


def _piece(
    start: int, *, images: Path, size: int, name: str, runtime: params.Runtime, evaluate: scores.Evaluate
) -> np.ndarray:
    """Features of `size` images from number `start` on."""
    common.settle(runtime.threads)
    pictures = imageset.read(images).images[start : start + size]
    return features.extract(
        name, pictures, batch=evaluate.batch_size, device=runtime.device, weights=evaluate.inception_weights
    )


if __name__ == "__main__":
    common.run(main)
