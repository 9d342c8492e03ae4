"""Score what a model is to be compared with: real slices of other people, blurred ones, their mean, and copies."""

import sys
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.ndimage import gaussian_filter

from stages import _cli, _files, evaluate
from synthmri import imageset, params
from synthmri.evaluation import copies, features, scorecard
from synthmri.training import perceptual, sampling

BLUR_PX = 2.0  # standard deviation


def main(
    train: evaluate.Set,
    train_features: evaluate.Features,
    test: evaluate.Set,
    test_features: evaluate.Features,
    metrics: Annotated[Path, typer.Option(help="JSON to write, one block a reference")],
) -> None:
    """Every reference gets the scores and the N of a model, against the same test slices."""
    runtime = _cli.start()
    p = params.read(_cli.PARAMS, "evaluate", scorecard.Evaluate)
    n = params.read(_cli.PARAMS, "sample", sampling.Sample).n
    reference = evaluate.reference(train, train_features, test, test_features, p)
    lpips = perceptual.lpips_model(device=runtime.device)
    n = min(n, len(reference.train))
    shown = min(n, len(reference.test))
    if shown < n:
        print(
            f"{len(reference.test)} test slices for N = {n}: the blurred ones are {shown}, so their distances are "
            "a little too large beside the others",
            file=sys.stderr,
        )
    rows = scorecard.draw(len(reference.train), n)
    others = scorecard.draw(len(reference.test), n)
    names = list(reference.train_features)

    def extracted(images: np.ndarray) -> dict[str, np.ndarray]:
        settings = dict(batch=p.batch_size, device=runtime.device, further=p.features, weights=p.inception_weights)
        return {name: features.extract(name, images, **settings) for name in names}

    def copying(images: np.ndarray, chosen: np.ndarray) -> dict[str, float]:
        return scorecard.against_train(images, chosen, reference, p, lpips)[0]

    def everything(images: np.ndarray, values: dict[str, np.ndarray]) -> dict[str, float]:
        return scorecard.score(images, values, np.arange(len(images)), reference, p, lpips).numbers

    # Real slices of other people: as distributions, train against test; one by one, test against train.
    between, _ = scorecard.distribution(reference.train_features, rows, reference, p)
    mean = _mean(reference.train)
    one_mean = extracted(mean[None])
    mirrored = copies.views(reference.train, rows + len(reference.train))
    with _files.replacing(metrics) as part, tempfile.TemporaryFile(dir=metrics.parent) as file:
        for _, piece in imageset.pieces(reference.test, imageset.PIECE, others):
            file.write(imageset.to_uint8(gaussian_filter(piece / 255, (0, BLUR_PX, BLUR_PX))).data)
        file.flush()
        blurred = np.memmap(file, np.uint8, "r", shape=(len(others), *mean.shape))
        result = {
            "real": between
            | copying(reference.test, others)
            | {"n": float(n), "likeness_bound": copies.bound(reference.likeness)},
            "blurred": everything(blurred, extracted(blurred)),
            "mean_image": everything(
                np.broadcast_to(mean, (n, *mean.shape)),
                {name: np.broadcast_to(values, (n, values.shape[1])) for name, values in one_mean.items()},
            ),
            "train_copies": between | copying(reference.train, rows),
            "train_copies_mirrored": everything(mirrored, extracted(mirrored)),
        }
        _files.write_metrics(part, result)


def _mean(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W) -> the mean image, uint8 (H, W)."""
    total = sum(piece.sum(axis=0, dtype=np.float64) for _, piece in imageset.pieces(images, imageset.PIECE))
    return np.rint(total / len(images)).astype(np.uint8)


if __name__ == "__main__":
    _cli.run(main)
