"""Turn the training slices into latents, once for all epochs; and their masks into places of latents."""

import contextlib
import itertools
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files
from synthmri import imageset, params, streams
from synthmri.generators import autoencoder
from synthmri.training import masks, views

BATCH_SIZE = 16  # slices at a time; of more, on a CPU, none is quicker: `autoencoder.quicker`


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to encode")],
    model: Annotated[Path, typer.Option(help="autoencoder in diffusers' format")],
    out: Annotated[
        Path, typer.Option(help="folder of mean.npy and std.npy, float32 (N, views, 4, h, w), and lesions.npy")
    ],
):
    """Store the posterior's mean and standard deviation of encode.views views of every slice."""
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "encode", autoencoder.Encode)
    train = imageset.read(images)
    slices, marks, mirrors = train.images, train.masks, views.mirrors(train.manifest)
    vae = autoencoder.load(model, device=runtime.device)

    def view(number: int, start: int) -> tuple[np.ndarray, np.ndarray | None]:
        rows = slice(start, start + BATCH_SIZE)
        some, inside = slices[rows], None if marks is None else marks[rows]
        if number > 1:
            return views.further(some, streams.generator(0, "view", number, start), inside, mirrors[rows])
        turned = mirrors[rows] & bool(number)
        return views.mirrored(some, turned), None if inside is None else views.mirrored(inside, turned)

    def encoded(start: int) -> list[np.ndarray]:  # mean, deviation and lesions of (<= batch, views)
        batch = []
        for number in range(p.views):
            some, inside = view(number, start)
            mean, deviation = autoencoder.encode(vae, some, batch_size=BATCH_SIZE, precision=precision)
            places = [] if inside is None else [masks.blocks(inside, mean.shape[-1])]
            batch.append((mean, deviation, *places))
        return [np.stack(kind, axis=1) for kind in zip(*batch, strict=True)]

    batches = map(encoded, _cli.progress(range(0, len(slices), BATCH_SIZE), "encoded batches"))
    first = next(batches)
    with _files.replacing(out) as folder:
        folder.mkdir()
        with contextlib.ExitStack() as files:
            append = [
                files.enter_context(imageset.growing(folder / f"{name}.npy", kind.shape[1:], kind.dtype))
                for name, kind in zip(("mean", "std", "lesions"), first, strict=False)
            ]
            for batch in itertools.chain([first], batches):
                for more, kind in zip(append, batch, strict=True):
                    more(kind)
                imageset.release(slices)


if __name__ == "__main__":
    _cli.run(main)
