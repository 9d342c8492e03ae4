"""Features of an ImageSet: `python -m stages.extract --images data/slices/train --out data/features/train.npy`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import common
from synthmri import features, imageset, params, scores


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to read")],
    out: Annotated[Path, typer.Option(help="float32 features (N, 256) to write, NPY")],
) -> None:
    runtime = common.start()
    evaluate = params.read(common.PARAMS, "evaluate", scores.Evaluate)
    pictures = imageset.read(images).images
    values = features.alexnet(pictures, batch=evaluate.batch_size, device=runtime.device)
    with common.replacing(out) as part, part.open("wb") as file:  # a file, for np.save would add .npy to a path
        np.save(file, values)


if __name__ == "__main__":
    common.run(main)
