"""Features of an ImageSet by every extractor: `python -m stages.extract --images data/slices/train --out FOLDER`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import common
from synthmri import features, imageset, params, scores


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to read")],
    out: Annotated[Path, typer.Option(help="folder to write: alexnet.npy, effnet.npy, ... of float32 (N, D)")],
) -> None:
    """AlexNet and EfficientNet-Lite0 always, Inception where evaluate.inception_weights names its weights."""
    runtime = common.start()
    evaluate = params.read(common.PARAMS, "evaluate", scores.Evaluate)
    pictures = imageset.read(images).images
    extractors = ["alexnet", "effnet"] + (["inception"] if evaluate.inception_weights else [])
    with common.replacing(out) as folder:
        folder.mkdir()
        for name in common.progress(extractors, f"extractors over {images.name}"):
            values = features.extract(
                name, pictures, batch=evaluate.batch_size, device=runtime.device, weights=evaluate.inception_weights
            )
            np.save(folder / f"{name}.npy", values)


if __name__ == "__main__":
    common.run(main)
