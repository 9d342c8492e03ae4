"""How well an autoencoder rebuilds slices it has never seen: real ones where REAL_MRI names them, and simulated ones.

python -m benchmarks.reconstruction --model pretrained/base --ceiling 1000

The ceiling is what the same network reaches once it has been trained on those very slices, for L1 alone: what latents
of this size can hold, whatever they learnt before. Two yardsticks stand beside it: the best linear code of as many
numbers (principal components of 8 x 8 blocks, fitted to those very slices), and WebP, which spends its bits where they
are needed.

--mixed STEPS says what the simulated heads lack: the training of the base goes on for so many steps, once as it was and
once with real slices of open-ms and t1ce-tumor in half of each batch; both are judged on lgg-flair, which neither saw.
"""

import copy
import io
import json
import os
import tempfile
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from PIL import Image

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.evaluation import distances, features, pairs
from synthmri.generators import autoencoder, autoencoder_training
from synthmri.reporting import plots
from synthmri.scans import read, slicing
from synthmri.simulation import pretraining
from synthmri.simulation.atlas import load_atlas
from synthmri.training import masks, perceptual

COLUMNS = {
    "n": "N", "psnr": "PSNR dB", "ssim": "SSIM", "lpips": "LPIPS", "fd_effnet": "FD EffNet",
    "fd_alexnet": "FD AlexNet (LPIPS looks through it)",
}  # fmt: skip
EVERY = {"open-ms": 1, "t1ce-tumor": 20, "lgg-flair": 9}  # so many files are passed over for one, of volumes none


def real_sets(root: Path, data: slicing.Data) -> dict[str, np.ndarray]:
    """Every 5th axial slice of open-ms in every contrast, and some pictures of the two others, preprocessed as those of
    a user are: uint8 (N, S, S) each."""
    wide = data.model_copy(update={"contrasts": (), "slice_step": 5})
    found = {}
    for name, every in EVERY.items():
        sources, _ = read.find(root / name)
        parts = []
        for source in sources[::every]:
            scan = read.read(source)
            made = (
                slicing.from_pictures(scan.data, wide)
                if scan.spacing_mm is None
                else slicing.from_volume(scan.data, scan.spacing_mm, wide)
            )
            parts.append(made.images)
        found[name] = np.concatenate(parts)
    return found


def trained_on(vae, run: pretraining.Pretrain, steps: int, real: np.ndarray | None, lpips, precision: str):
    """A copy of the autoencoder after more steps of its pretraining; real: uint8 (N, S, S) for half of each batch."""
    p = run.autoencoder.model_copy(update={"steps": steps, "learning_rate": run.autoencoder.learning_rate / 4})
    pupil, atlas = copy.deepcopy(vae), load_atlas()

    def draw(generator: torch.Generator) -> torch.Tensor:
        made = pretraining.rgb(pretraining.autoencoder_images(atlas, p, generator))
        if real is not None:
            half = p.batch_size // 2
            made[:half] = autoencoder.to_tensor(*masks.crops([real], half, p.crop_px, generator))
        return made

    with tempfile.TemporaryDirectory() as folder, _cli.counter("training on", steps) as tick:
        autoencoder_training.train(
            pupil, "full", draw, pretraining.losses(p), lpips, steps=p.steps, learning_rate=p.learning_rate, seed=0,
            section="pretrain.autoencoder", checkpoint=Path(folder) / "c.pt", precision=precision, tick=tick,
        )  # fmt: skip
    return autoencoder.quicker(pupil)


def linear(images: np.ndarray, numbers: int, side: int = 8) -> np.ndarray:
    """uint8 (N, H, W) -> the same from `numbers` principal components of each block; sides are multiples of `side`."""
    n, height, width = images.shape
    blocks = images.reshape(n, height // side, side, width // side, side).transpose(0, 1, 3, 2, 4)
    flat = blocks.reshape(-1, side * side) / 255.0
    middle = flat.mean(0)
    _, vectors = np.linalg.eigh(np.cov(flat - middle, rowvar=False))
    kept = vectors[:, -numbers:]
    rebuilt = imageset.to_uint8((flat - middle) @ kept @ kept.T + middle)
    return rebuilt.reshape(blocks.shape).transpose(0, 1, 3, 2, 4).reshape(images.shape)


def webp(images: np.ndarray, quality: int) -> tuple[np.ndarray, float]:
    """uint8 (N, H, W) -> the same through WebP, and the bits it took a pixel."""
    out, size = np.empty_like(images), 0
    for i, image in enumerate(images):
        file = io.BytesIO()
        Image.fromarray(image).save(file, "WEBP", quality=quality)
        size += file.tell()
        out[i] = np.asarray(Image.open(file).convert("L"))
    return out, 8 * size / images.size


def main(
    model: Annotated[
        list[Path], typer.Option(help="pipeline in Stable Diffusion format, or autoencoder; may be given several times")
    ] = (Path("pretrained/base"),),
    simulated: Annotated[Path, typer.Option(help="ImageSet of simulated slices, if there is one")] = Path(
        "data/slices/test"
    ),
    ceiling: Annotated[int, typer.Option(min=0, help="steps of training on the real slices themselves; 0 = none")] = 0,
    mixed: Annotated[int, typer.Option(min=0, help="steps of training on, with and without real slices; 0 = none")] = 0,
    show: Annotated[
        Path | None, typer.Option(help="folder for pictures of the real slices; keep it out of git")
    ] = None,
    printed: Annotated[
        bool, typer.Option("--table", help="print the table of the result file, measure nothing")
    ] = False,
):
    """Mean PSNR, SSIM and LPIPS of slices against themselves through the autoencoder, and of the ceiling if asked for.

    Of several models the first has the ceiling, and rows without a name. Writes benchmarks/results/reconstruction.json.
    """
    if printed:
        print(table(json.loads((measure.RESULTS / "reconstruction.json").read_text(encoding="utf-8"))))
        return
    precision = _cli.precision(_cli.start())
    how = params.read(_cli.PARAMS, "adapt", autoencoder_training.Adapt)
    data = params.read(_cli.PARAMS, "data", slicing.Data)
    root = os.environ.get("REAL_MRI")
    sets = real_sets(Path(root), data) if root else {}
    if (simulated / "images.npy").is_file():
        sets["simulated"] = np.asarray(imageset.read(simulated).images)
    vae, *further = (autoencoder.load(each / "vae" if (each / "vae").is_dir() else each) for each in model)
    lpips, rows = perceptual.lpips_model(), {}

    def row(decoded: np.ndarray, images: np.ndarray) -> dict[str, float]:
        values = pairs.resemblance(decoded, images, lpips)
        for name in ("effnet", "alexnet"):
            both = (features.extract(name, each) for each in (decoded, images))
            values[f"fd_{name}"] = distances.frechet_distance(*both)
        return {"n": len(images)} | {key: round(value, 4) for key, value in values.items()}

    if mixed and root:
        run, judged = params.read(_cli.PRETRAINING, "pretrain", pretraining.Pretrain), sets["lgg-flair"]
        real = np.concatenate([sets["open-ms"], sets["t1ce-tumor"]])
        for words, some in (("as it is", None), ("simulated", None), ("simulated and real", real)):
            pupil = vae if words == "as it is" else trained_on(vae, run, mixed, some, lpips, precision)
            decoded = autoencoder.reconstruct(pupil, judged, batch_size=16, precision=precision)
            rows[f"lgg-flair, {words}"] = row(decoded, judged) | {"steps": 0 if pupil is vae else mixed}

    for name, images in sets.items():
        decoded = autoencoder.reconstruct(vae, images, batch_size=16, precision=precision)
        rows[name] = row(decoded, images)
        for other, where in zip(further, model[1:], strict=True):
            rebuilt = autoencoder.reconstruct(other, images, batch_size=16, precision=precision)
            rows[f"{name}, {where.name}"] = row(rebuilt, images)
        rows[f"{name}, linear"] = row(linear(images, vae.config.latent_channels), images)
        coded, bits = webp(images, quality=5)
        rows[f"{name}, WebP"] = row(coded, images) | {"bits_a_pixel": round(bits, 3)}
        if ceiling and name != "simulated":
            pupil = copy.deepcopy(vae)
            only_l1 = how.model_copy(update={"steps": ceiling, "perceptual_weight": 0.0, "adversarial_weight": 0.0})
            with tempfile.TemporaryDirectory() as folder, _cli.counter(f"{name}: ceiling", ceiling) as tick:
                checkpoint = Path(folder) / "ceiling.pt"
                autoencoder_training.adapt(
                    pupil,
                    images,
                    "full",
                    only_l1,
                    lpips,
                    seed=0,
                    checkpoint=checkpoint,
                    precision=precision,
                    tick=tick,
                )
            fitted = autoencoder.reconstruct(pupil, images, batch_size=16, precision=precision)
            rows[f"{name}, trained on them"] = row(fitted, images) | {"steps": ceiling}
        if show:
            show.mkdir(parents=True, exist_ok=True)
            some = imageset.evenly(len(images), 8)
            pair = np.concatenate([images[some], decoded[some]])
            plots.save(plots.contact_sheet(pair, columns=8), show / f"reconstruction_{name}.png")
    measure.write("reconstruction", rows)


def table(result: dict) -> str:
    """Markdown: a row for each set and what rebuilt it."""
    return measure.columns("slices", {name: row for name, row in result.items() if name != "machine"}, COLUMNS)


if __name__ == "__main__":
    _cli.run(main)
