"""Draw an ImageSet from a trained model, with a PNG an image beside it, and with masks where the model draws these."""

import sys
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from PIL import Image

from stages import _cli, _files, _launch
from synthmri import generators, imageset, params
from synthmri.generators import autoencoder
from synthmri.reporting import plots
from synthmri.scans import prompts
from synthmri.training import distributed, sampling


def main(
    generator: Annotated[
        str, typer.Option(help="module that draws, below synthmri.generators: latent_diffusion, vae, ...")
    ],
    model: Annotated[Path, typer.Option(help="folder of the trained model")],
    images: Annotated[Path, typer.Option(help="ImageSet of the training slices, whose prompts are drawn from")],
    out: Annotated[Path, typer.Option(help="folder of the ImageSet, with a PNG an image in png/")],
    sheet: Annotated[Path, typer.Option(help="PNG contact sheet")],
    settings: Annotated[
        Path | None, typer.Option(help="of latent_diffusion: guidance, steps and scheduler, from `sweep`")
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(help="of latent_diffusion: autoencoder in place of the model's own")
    ] = None,
):
    """Sample by section `sample`: image i depends on its seed (sample.seed + i) alone."""
    runtime = _launch.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "sample", sampling.Sample)
    if settings is not None:
        p = sampling.with_choice(p, _files.read_json(settings))
    train = imageset.read(images)
    seeds = list(range(p.seed, p.seed + p.n))
    trained = generators.find(generator).load(model, device=runtime.device)
    if vae is not None:
        trained.pipe.vae = autoencoder.load(vae, device=runtime.device)
    texts, asked = [""] * p.n, pd.DataFrame({"label": [""] * p.n})
    if trained.prompted:
        prompt = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
        texts = prompts.drawn(prompts.prompts(train.manifest, prompt), seeds)
        asked = prompts.asked(train.manifest, prompt).iloc[prompts.drawn(range(len(train)), seeds)]
        if p.guidance_scale > sampling.guidance(texts, p.guidance_scale) and distributed.is_main():
            print(
                f"every prompt is empty, so guidance {p.guidance_scale:g} changes nothing and is left out",
                file=sys.stderr,
            )
    how = {"texts": texts, "size": train.images.shape[1], "precision": precision, "progress": _progress}
    if hasattr(trained, "sample_with_masks"):
        drawn, *masks = trained.sample_with_masks(seeds, p, **how).swapaxes(0, 1)
    else:
        drawn, masks = trained.sample(seeds, p, **how), []
    if not distributed.is_main():
        return
    used = p.model_dump(include=set(trained.settings))
    columns = {"model": out.name, "seed": [str(seed) for seed in seeds], "prompt": texts}
    manifest = pd.DataFrame(columns | {name: list(asked[name]) for name in asked})
    keep = {key: train.meta[key] for key in ("pixel_mm", "orientation") if key in train.meta}
    made = imageset.ImageSet(drawn, manifest, {"model": out.name, "sample": used, **keep}, *masks)
    with _files.replacing(out) as folder, _files.replacing(sheet) as picture:
        imageset.write(folder, made)
        (folder / "png").mkdir()
        for seed, image in zip(seeds, drawn, strict=True):
            plots.save(Image.fromarray(image), folder / "png" / f"{seed:06d}.png")
        plots.save(plots.contact_sheet(drawn[:64], columns=8), picture)


def _progress(starts, count: int):
    return _cli.progress(starts, "sampled batches", count)


if __name__ == "__main__":
    _cli.run(main)
