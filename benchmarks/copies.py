"""How well copies of training slices are found: graded near-copies among honest images, by several meters.

python -m benchmarks.copies

Each meter gives an image a number, and its bound is the 95th percentile of slices of half of the other people: 5 %
false alarms. The other half, and images made of theirs, must not count; planted copies must. What `memorised` counts
by (`copies.likeness`) rests on these numbers; results of other slices stay in the file.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from scipy import ndimage

from benchmarks import measure
from stages import _cli
from synthmri import imageset, params
from synthmri.evaluation import copies, features
from synthmri.generators import autoencoder, latent_diffusion
from synthmri.scans import prompts

STRENGTHS = {  # kind -> strengths
    "unchanged": (0,),
    "mirrored": (0,),
    "shifted, px": (1, 2, 4, 8),
    "turned, degrees": (1, 2, 5, 10),
    "mirrored, turned by 5 degrees, shifted by 4 px": (0,),
    "contrast: exponent of the grey levels": (0.7, 1.4),
    "shading, standard deviation of its log": (0.25,),
    "noise, grey levels": (10, 25),
    "blurred, px": (1, 2),
    "another lesion": (0,),
    "through the autoencoder": (0,),
    "noised and denoised, from timestep": (50, 100, 200, 400),
}
HONEST = ("other people", "means of two neighbouring slices of theirs", "drawn by the base, which saw nobody")
METERS = {
    "alexnet_one_view": "AlexNet, one view",
    "alexnet": "AlexNet",
    "effnet": "EfficientNet",
    "pixels": "pixels, correlation",
    "latents": "latents, standardised",
    "joined": "joined",
    "likeness": "**aligned correlation**",
}
STEPS = 40  # of the sampler over all timesteps
BATCH = 16


def main(
    name: Annotated[str, typer.Option(help="what these slices are, in the file and the table")] = "simulated",
    slices: Annotated[Path, typer.Option(help="folder of the ImageSets train, val and test")] = Path("data/slices"),
    samples: Annotated[
        Path, typer.Option(help="ImageSet drawn by a model that saw none of these people; left out where there is none")
    ] = Path("data/samples/base"),
    model: Annotated[Path, typer.Option(help="pipeline that denoises copies")] = Path("models/latent_diffusion"),
    n: Annotated[int, typer.Option(min=2, help="training slices copied, of each kind and seed")] = 24,
    seeds: Annotated[int, typer.Option(min=2, help="draws of the slices and of the people that set the bound")] = 3,
    show: Annotated[
        bool, typer.Option("--table", help="print the tables of docs/evaluation.md, and measure nothing")
    ] = False,
):
    """Write benchmarks/results/copies.json: shares of each kind that a meter takes for copies, and their spread."""
    file = measure.RESULTS / "copies.json"
    if show:
        print(table(json.loads(file.read_text(encoding="utf-8"))))
        return
    _cli.start()
    train, val, test = (imageset.read(slices / split) for split in ("train", "val", "test"))
    pipe = latent_diffusion.load(model)
    texts = prompts.prompts(train.manifest, params.read(_cli.PARAMS, "prompt", prompts.Prompt))
    others = np.concatenate([val.images, test.images])
    who = np.concatenate([val.manifest["subject"], test.manifest["subject"]])
    meters = measured(np.array(train.images), pipe.vae)
    means, whose = between(others, who)
    honest = {HONEST[0]: others, HONEST[1]: means}
    if samples.is_dir():
        honest[HONEST[2]] = np.array(imageset.read(samples).images)
    found = {kind: meters(images) for kind, images in honest.items()}
    shares: list[dict[str, dict[str, float]]] = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        rows = np.sort(rng.choice(len(train), n, replace=False))
        originals = imageset.rows(train.images, rows)
        bounding = np.isin(who, rng.permutation(np.unique(who))[: len(np.unique(who)) // 2])
        bound = joining(found[HONEST[0]], bounding)
        limits = {meter: np.percentile(values[bounding], 95) for meter, values in bound(found[HONEST[0]]).items()}

        def share(values: dict[str, np.ndarray], limits=limits, bound=bound) -> dict[str, float]:
            return {meter: float((each > limits[meter]).mean()) for meter, each in bound(values).items()}

        result = {}
        for kind, values in found.items():
            ours = {HONEST[0]: ~bounding, HONEST[1]: ~bounding[whose]}.get(kind, slice(None))
            result[kind] = share({meter: each[ours] for meter, each in values.items()})
        for kind, strength in ((kind, strength) for kind, all_of in STRENGTHS.items() for strength in all_of):
            copied = planted(kind, strength, originals, rng, pipe, [texts[row] for row in rows])
            result[f"{kind} {strength:g}"] = share(meters(copied))
            print(f"seed {seed}", f"{kind} {strength:g}", result[f"{kind} {strength:g}"], file=sys.stderr, flush=True)
        shares.append(result)
    summary = {
        kind: {
            meter: [round(float(of([one[kind][meter] for one in shares])), 4) for of in (np.mean, np.std)]
            for meter in METERS
        }
        for kind in shares[0]
    }
    whole = {
        meter: [
            round(float(of([np.mean([one[kind][meter] for kind in one if kind not in HONEST]) for one in shares])), 4)
            for of in (np.mean, np.std)
        ]
        for meter in METERS
    }
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    known.pop("machine", None)
    counts = {"train": len(train), "others": len(who), "other_people": len(np.unique(who)), "n": n, "seeds": seeds}
    measure.write("copies", known | {name: counts | {"shares": summary, "all_copies": whole}})


# meters --------------------------------------------------------------------------------------------------------------


def measured(train: np.ndarray, vae) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """What gives uint8 images (N, H, W) their numbers by each meter but the joined one: (N,), larger for copies."""
    both = copies.views(train, np.arange(2 * len(train)))
    known = {name: features.extract(name, both, batch=BATCH) for name in ("alexnet", "effnet")}

    def latents(images: np.ndarray) -> np.ndarray:
        return autoencoder.encode(vae, images, batch_size=BATCH)[0].reshape(len(images), -1)

    known["latents"] = latents(both)
    mean, spread = known["latents"].mean(axis=0), known["latents"].std(axis=0) + 1e-6
    known["latents"] = (known["latents"] - mean) / spread

    def numbers(images: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: features.extract(name, images, batch=BATCH) for name in ("alexnet", "effnet")}
        found["latents"] = (latents(images) - mean) / spread
        near = {name: -copies.nearest_distances(values, known[name]) for name, values in found.items()}
        one_view = -copies.nearest_distances(found["alexnet"], known["alexnet"][: len(train)])
        return near | {
            "alexnet_one_view": one_view,
            "pixels": copies.closest_by_pixels(images, train).correlation,
            "likeness": copies.likeness(images, train).largest,
        }

    return numbers


def joining(honest: dict[str, np.ndarray], bounding: np.ndarray) -> Callable[[dict], dict[str, np.ndarray]]:
    """What adds the joined meter: the mean of likeness, EfficientNet and latents, each in deviations of honest ones."""
    parts = ("likeness", "effnet", "latents")
    scale = {name: (honest[name][bounding].mean(), honest[name][bounding].std()) for name in parts}

    def joined(values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return values | {
            "joined": np.mean([(values[name] - scale[name][0]) / scale[name][1] for name in parts], axis=0)
        }

    return joined


# images --------------------------------------------------------------------------------------------------------------


def between(images: np.ndarray, who: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means of each two slices of one person that follow each other, and the row of the first of the two."""
    first = np.flatnonzero(who[:-1] == who[1:])
    return _grey((images[first].astype(float) + images[first + 1]) / 2), first


def planted(
    kind: str, strength: float, images: np.ndarray, rng: np.random.Generator, pipe, texts: list[str]
) -> np.ndarray:
    """Near-copies of uint8 (N, H, W): a kind of STRENGTHS, at one of its strengths. Uint8 (N, H, W)."""
    if kind == "unchanged":
        return images
    if kind == "mirrored":
        return images[:, :, ::-1].copy()
    if kind == "shifted, px":
        angles = rng.uniform(0, 2 * np.pi, len(images))
        moves = strength * np.stack([np.sin(angles), np.cos(angles)], axis=1)
        return _grey(
            np.stack([ndimage.shift(one.astype(float), by, order=1) for one, by in zip(images, moves, strict=True)])
        )
    if kind == "turned, degrees":
        angles = strength * rng.choice([-1, 1], len(images))
        turned = (
            ndimage.rotate(one.astype(float), by, reshape=False, order=1)
            for one, by in zip(images, angles, strict=True)
        )
        return _grey(np.stack(list(turned)))
    if kind.startswith("mirrored, turned"):
        turned = planted("turned, degrees", 5, images[:, :, ::-1], rng, pipe, texts)
        return planted("shifted, px", 4, turned, rng, pipe, texts)
    if kind.startswith("contrast"):
        return _grey(255 * (images / 255) ** strength)
    if kind.startswith("shading"):
        return _grey(images * np.exp(np.stack([_field(images.shape[1:], strength, rng) for _ in images])))
    if kind.startswith("noise,"):
        return _grey(images + rng.normal(0, strength, images.shape))
    if kind == "blurred, px":
        return _grey(ndimage.gaussian_filter(images.astype(float), (0, strength, strength)))
    if kind == "another lesion":
        return _grey(np.stack([_with_lesion(image.astype(float), rng) for image in images]))
    if kind == "through the autoencoder":
        return autoencoder.reconstruct(pipe.vae, images, batch_size=BATCH)
    return _denoised(pipe, images, strength, texts, rng)


def _grey(images: np.ndarray) -> np.ndarray:
    return imageset.to_uint8(images / 255)


def _field(shape: tuple[int, int], spread: float, rng: np.random.Generator) -> np.ndarray:
    """A smooth field of that standard deviation, of four knots a side."""
    field = ndimage.zoom(rng.normal(size=(4, 4)), np.array(shape) / 4, order=3)
    return spread * (field - field.mean()) / field.std()


def _with_lesion(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """An ellipse of 3 to 7 % of the edge, bright or dark, with a soft border, somewhere well inside the head."""
    edge = len(image)
    inside = np.argwhere(ndimage.binary_erosion(image > 40, iterations=edge // 20))
    y, x = inside[rng.integers(len(inside))] if len(inside) else np.array(image.shape) // 2
    rows, columns = np.indices(image.shape)
    height, width = edge * rng.uniform(0.03, 0.07, 2)
    weight = 1 / (1 + np.exp(8 * (np.hypot((rows - y) / height, (columns - x) / width) - 1)))
    return image * (1 - weight) + weight * image.max() * rng.choice([0.15, 0.85])


@torch.no_grad()
def _denoised(pipe, images: np.ndarray, start: float, texts: list[str], rng: np.random.Generator) -> np.ndarray:
    """Noised in latent space to a timestep, and denoised from there by the model (DDIM)."""
    scheduler = latent_diffusion.new_scheduler(pipe, "ddim")
    scheduler.set_timesteps(STEPS)
    steps = [step for step in scheduler.timesteps if step <= start]
    config, out = pipe.vae.config, []
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    for first in range(0, len(images), BATCH):
        part = slice(first, first + BATCH)
        z = torch.from_numpy(autoencoder.encode(pipe.vae, images[part], batch_size=BATCH)[0])
        z = (z - (getattr(config, "shift_factor", None) or 0)) * config.scaling_factor
        z = scheduler.add_noise(z, torch.randn(z.shape, generator=generator), steps[0].expand(len(z)))
        words = latent_diffusion.embed(pipe, texts[part])
        for step in steps:
            predicted = pipe.unet(scheduler.scale_model_input(z, step), step, encoder_hidden_states=words).sample
            z = scheduler.step(predicted, step, z).prev_sample
        z = z / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
        out.append(autoencoder.to_planes(pipe.vae.decode(z).sample / 2 + 0.5, autoencoder.draws_masks(pipe.vae))[:, 0])
    return np.concatenate(out)


# table ---------------------------------------------------------------------------------------------------------------


def table(result: dict) -> str:
    """Markdown: of each kind, the share that each meter takes for copies; a kind's strengths beside each other."""
    parts = []
    for name, found in result.items():
        if name == "machine":
            continue
        shares = found["shares"]
        lines = [
            f"{name}: {found['n']} copies of each kind, strength and seed, of {found['train']} training slices; "
            f"{found['others']} slices of {found['other_people']} other people; {found['seeds']} seeds.",
            "",
            "| must count | " + " | ".join(METERS.values()) + " |",
            "|---" * (len(METERS) + 1) + "|",
        ]
        for kind, strengths in STRENGTHS.items():
            title = kind if strengths == (0,) else f"{kind}: {', '.join(f'{each:g}' for each in strengths)}"
            rows = [shares[f"{kind} {each:g}"] for each in strengths]
            lines.append(_row(title, ["; ".join(f"{row[meter][0]:.2f}" for row in rows) for meter in METERS]))
        lines.append(_row("all of these, ± over seeds", [_spread(found["all_copies"][meter]) for meter in METERS]))
        lines.append(_row("*must not count (0.05)*", [""] * len(METERS)))
        lines += [_row(kind, [_spread(shares[kind][meter]) for meter in METERS]) for kind in HONEST if kind in shares]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def _row(title: str, cells: list[str]) -> str:
    return f"| {title} | " + " | ".join(cells) + " |"


def _spread(pair: list[float]) -> str:
    return f"{pair[0]:.2f} ± {pair[1]:.2f}"


if __name__ == "__main__":
    _cli.run(main)
