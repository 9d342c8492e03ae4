"""Score what a model is to be compared with: real slices of other people, blurred ones, their mean, and copies."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from scipy.ndimage import gaussian_filter

from stages import common, evaluate
from synthmri import features, params, sampling, scorecard, scores

BLUR_PX = 2.0  # standard deviation


def main(
    train: evaluate.Set,
    train_features: evaluate.Features,
    test: evaluate.Set,
    test_features: evaluate.Features,
    metrics: Annotated[Path, typer.Option(help="JSON to write, one block a reference")],
) -> None:
    """Every reference gets the scores and the N of a model, against the same held-out slices."""
    runtime = common.start()
    p = params.read(common.PARAMS, "evaluate", scores.Evaluate)
    n = params.read(common.PARAMS, "sample", sampling.Sample).n
    reference = evaluate.reference(train, train_features, test, test_features, p)
    lpips = features.lpips_model(device=runtime.device)
    n = min(n, len(reference.train))
    rows = evaluate.draw(len(reference.train), n, p.seed)
    held_out = evaluate.draw(len(reference.test), min(n, len(reference.test)), p.seed)
    blurred = np.stack([gaussian_filter(image, BLUR_PX) for image in reference.test[held_out]])
    mean = np.rint(np.asarray(reference.train, np.float64).mean(axis=0)).astype(np.uint8)
    names = list(reference.train_features)

    def extracted(images: np.ndarray) -> dict[str, np.ndarray]:
        settings = dict(batch=p.batch_size, device=runtime.device, weights=p.inception_weights)
        return {name: features.extract(name, images, **settings) for name in names}

    def of(some: dict[str, np.ndarray], chosen: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[chosen] for name, values in some.items()}

    def copying(images: np.ndarray, values: dict[str, np.ndarray]) -> dict[str, float]:
        return scorecard.against_train(images, values, reference, p, lpips)[0]

    def everything(images: np.ndarray, values: dict[str, np.ndarray]) -> dict[str, float]:
        return scorecard.score(images, values, reference, p, lpips)[0]

    train_values = of(reference.train_features, rows)
    # Real slices of other people: as distributions, train against held-out; one by one, held-out against train.
    between = scorecard.distribution(train_values, reference, p)
    one_mean = extracted(mean[None])
    result = {
        "held_out": between
        | copying(np.array(reference.test[held_out]), of(reference.test_features, held_out))
        | {"n": float(n)},
        "blurred": everything(blurred, extracted(blurred)),
        "mean_image": everything(
            np.repeat(mean[None], n, axis=0), {name: np.repeat(values, n, axis=0) for name, values in one_mean.items()}
        ),
        "train_copies": between | copying(np.array(reference.train[rows]), train_values),
    }
    with common.replacing(metrics) as part:
        common.write_metrics(part, result)


if __name__ == "__main__":
    common.run(main)
