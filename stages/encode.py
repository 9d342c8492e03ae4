"""Turn the training slices into latents, once for all epochs."""

import itertools
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files
from synthmri import imageset, params, streams
from synthmri.generators import autoencoder
from synthmri.training import views

BATCH_SIZE = 16  # slices at a time; of more, on a CPU, none is quicker: `autoencoder.quicker`


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to encode")],
    model: Annotated[Path, typer.Option(help="autoencoder in diffusers' format")],
    out: Annotated[Path, typer.Option(help="folder of mean.npy and std.npy, float32 (N, views, 4, h, w)")],
):
    """Store the posterior's mean and standard deviation of encode.views views of every slice."""
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "encode", autoencoder.Encode)
    slices = imageset.read(images).images
    vae = autoencoder.load(model, device=runtime.device)

    def view(number: int, some: np.ndarray, start: int) -> np.ndarray:
        if number < 2:
            return some[:, :, ::-1] if number else some
        return views.further(some, streams.generator(0, "view", number, start))

    def encoded(start: int) -> list[np.ndarray]:  # mean and deviation, (<= batch, views, 4, h, w) each
        some = slices[start : start + BATCH_SIZE]
        batch = [
            autoencoder.encode(vae, view(number, some, start), batch_size=BATCH_SIZE, precision=precision)
            for number in range(p.views)
        ]
        return [np.stack(kind, axis=1) for kind in zip(*batch, strict=True)]

    batches = map(encoded, _cli.progress(range(0, len(slices), BATCH_SIZE), "encoded batches"))
    first = next(batches)
    with _files.replacing(out) as folder:
        folder.mkdir()
        with (
            imageset.growing(folder / "mean.npy", first[0].shape[1:], np.float32) as append_mean,
            imageset.growing(folder / "std.npy", first[1].shape[1:], np.float32) as append_std,
        ):
            for mean, std in itertools.chain([first], batches):
                append_mean(mean)
                append_std(std)
                imageset.release(slices)


if __name__ == "__main__":
    _cli.run(main)
