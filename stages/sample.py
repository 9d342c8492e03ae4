"""Draw an ImageSet from a pipeline, with PNGs and one .npy beside it."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer
from PIL import Image

from stages import common
from synthmri import imageset, ldm, params, plots


def main(
    model: Annotated[Path, typer.Option(help="pipeline in Stable Diffusion format")],
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices, whose prompts are drawn from")],
    out: Annotated[Path, typer.Option(help="folder of the ImageSet, png/ and samples.npy")],
    sheet: Annotated[Path, typer.Option(help="PNG contact sheet")],
):
    """Sample by section `sample`: image i depends on its seed (sample.seed + i) alone."""
    runtime = common.start()
    p = params.read(common.PARAMS, "sample", ldm.Sample)
    prompt = params.read(common.PARAMS, "prompt", ldm.Prompt)
    train = imageset.read(images)
    known = ldm.prompts(train.manifest, prompt)
    seeds = list(range(p.seed, p.seed + p.n))
    # The prompts of the training slices in a fixed random order: seed -> prompt, whatever N.
    order = np.random.default_rng(0).permutation(len(known))
    texts = [known[order[seed % len(known)]] for seed in seeds]
    size = train.images.shape[1]
    pipe = ldm.load(model, device=runtime.device)
    drawn = ldm.sample(
        pipe, texts, seeds, p, size=size, progress=lambda starts, n: common.progress(starts, "sampled batches", n)
    )
    manifest = pd.DataFrame({"model": model.name, "seed": [str(seed) for seed in seeds], "prompt": texts})
    keep = {key: train.meta[key] for key in ("pixel_mm", "orientation") if key in train.meta}
    made = imageset.ImageSet(drawn, manifest, {"model": model.name, "sample": p.model_dump(), **keep})
    with common.replacing(out) as folder, common.replacing(sheet) as picture:
        imageset.write(folder, made)
        (folder / "png").mkdir()
        for seed, image in zip(seeds, drawn, strict=True):
            plots.save(Image.fromarray(image), folder / "png" / f"{seed:06d}.png")
        # The shape that users of the original notebook read: N x H x W, or N x H x W x 3.
        np.save(folder / "samples.npy", drawn if p.channels == 1 else np.repeat(drawn[..., None], 3, axis=-1))
        plots.save(plots.contact_sheet(drawn[:64], columns=8), picture)


if __name__ == "__main__":
    common.run(main)
