"""Turn the training slices into latents, once for all epochs."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import common
from synthmri import autoencoder, imageset, params


def main(
    images: Annotated[Path, typer.Option(help="ImageSet to encode")],
    model: Annotated[Path, typer.Option(help="autoencoder in diffusers' format")],
    out: Annotated[Path, typer.Option(help="folder of mean.npy and std.npy, float32 (N, views, 4, h, w)")],
):
    """Store the posterior's mean and standard deviation of every slice and, with encode.flip, of its mirror image."""
    runtime = common.start()
    p = params.read(common.PARAMS, "encode", autoencoder.Encode)
    slices = imageset.read(images).images
    vae = autoencoder.load(model, device=runtime.device)
    views = [slices, slices[:, :, ::-1]] if p.flip else [slices]
    pieces = []
    for start in common.progress(range(0, len(slices), p.batch_size), "encoded batches"):
        batch = [
            autoencoder.encode(vae, view[start : start + p.batch_size], batch=p.batch_size, bf16=p.bf16)
            for view in views
        ]
        pieces.append([np.stack(kind, axis=1) for kind in zip(*batch, strict=True)])
    mean, std = (np.concatenate(kind) for kind in zip(*pieces, strict=True))
    with common.replacing(out) as folder:
        folder.mkdir()
        np.save(folder / "mean.npy", mean)
        np.save(folder / "std.npy", std)


if __name__ == "__main__":
    common.run(main)
