"""The fine-tuned model, the base model and the floor, measured alike: `python -m stages.evaluate --help`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stages import common
from synthmri import features, imageset, params, plots, scores
from synthmri.errors import UserError

Set = Annotated[Path, typer.Option(help="ImageSet to read")]
Features = Annotated[Path, typer.Option(help="features of that set, NPY of stages.extract")]


def main(
    train: Set,
    train_features: Features,
    test: Set,
    test_features: Features,
    samples: Set,
    samples_features: Features,
    base_samples: Set,
    base_features: Features,
    model: Annotated[Path, typer.Option(help="fine-tuned model in the Stable Diffusion format, for recon_*")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    picture: Annotated[Path, typer.Option(help="held-out beside synthetic, PNG to write")],
) -> None:
    runtime = common.start()
    evaluate = params.read(common.PARAMS, "evaluate", scores.Evaluate)
    folders = {"train": train, "test": test, "model": samples, "base": base_samples}
    files = {"train": train_features, "test": test_features, "model": samples_features, "base": base_features}
    sets = {name: _read_set(folder, evaluate.min_images) for name, folder in folders.items()}
    values = {name: _read_features(path, len(sets[name])) for name, path in files.items()}
    images = {name: sets[name].images for name in sets}
    if len({array.shape[1:] for array in images.values()}) > 1:
        sizes = ", ".join(f"{folders[name]} {array.shape[1:]}" for name, array in images.items())
        raise UserError(f"the sets differ in size of image: {sizes}; run `dvc repro`")

    # A Frechet distance grows as N falls, so all that is compared has one N and one reference: every held-out image.
    n = min(len(sets[name]) for name in ("train", "model", "base"))
    rows = {name: _draw(len(sets[name]), n, evaluate.seed) for name in ("train", "model", "base")}

    def distribution(name: str) -> dict:
        x, y = values[name][rows[name]], values["test"]
        return {"fd_alexnet": scores.frechet_distance(x, y), "kid_alexnet": scores.kernel_distance(x, y)}

    result = {"model": distribution("model"), "base": distribution("base"), "floor": distribution("train")}
    fd = {name: numbers["fd_alexnet"] for name, numbers in result.items()}
    if min(fd["base"], fd["floor"]) == 0:
        raise UserError(f"{test} holds the images of {train} or {base_samples}; split by subject again")

    lpips = features.lpips_model(device=runtime.device)

    def resemblance(ours: np.ndarray, references: np.ndarray) -> dict:
        return {
            "ssim": scores.ssim(ours, references),
            "psnr": scores.psnr(ours, references),
            "lpips": scores.lpips_distance(ours, references, lpips, batch=evaluate.batch_size),
        }

    compared = {"model": images["model"][rows["model"]], "base": images["base"][rows["base"]], "floor": images["test"]}
    for name, ours in compared.items():
        result[name] |= resemblance(ours, images["train"][scores.nearest_by_pixels(ours, images["train"])])

    from synthmri.ldm import reconstruct  # diffusers takes seconds to import; every check above comes first

    decoded = reconstruct(model, images["test"], batch=16, device=runtime.device, bf16=evaluate.bf16)
    tree = result.pop("model") | {
        **_uncertainty(values["model"][rows["model"]], values["test"], sets["test"].manifest, evaluate),
        **{f"recon_{key}": value for key, value in resemblance(decoded, images["test"]).items()},
        "fd_alexnet_reduction": (fd["base"] - fd["model"]) / fd["base"],
        "fd_ratio_to_floor": fd["model"] / fd["floor"],
        "n": n,
        **result,
    }
    with common.replacing(metrics) as part:
        part.write_text(json.dumps(_rounded(tree), indent=1, allow_nan=False) + "\n", encoding="utf-8")
    with common.replacing(picture) as part:
        # Simulated data is called simulated, here too.
        source = sets["test"].meta.get("data", {}).get("source")
        title = "Held out, simulated cohort" if source == "simulated" else "Held out"
        plots.save(plots.held_out_against_synthetic(images["test"], compared["model"], title=title), part)


def _read_set(folder: Path, least: int) -> imageset.ImageSet:
    found = imageset.read(folder)
    if len(found) < least:
        raise UserError(
            f"{folder} holds {len(found)} images, below evaluate.min_images = {least}; add images or sample more, or "
            "lower the bound and trust the Frechet distance less"
        )
    return found


def _read_features(path: Path, count: int) -> np.ndarray:
    try:
        values = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as features ({error}); run `dvc repro`") from None
    if values.ndim != 2 or len(values) != count:
        raise UserError(f"{path} holds {values.shape} features for {count} images; run `dvc repro`")
    return values


def _draw(size: int, n: int, seed: int) -> np.ndarray:
    """n of the rows 0 .. size - 1 in ascending order, at random: a set may be sorted by subject or by prompt."""
    return np.sort(np.random.default_rng(seed).choice(size, n, replace=False))


def _uncertainty(ours: np.ndarray, reference: np.ndarray, manifest: pd.DataFrame, evaluate: scores.Evaluate) -> dict:
    if "subject" not in manifest or manifest["subject"].nunique() < 2:  # then absent: an invented spread would mislead
        print("fewer than 2 held-out subjects are known: no fd_alexnet_std and kid_alexnet_std", file=sys.stderr)
        return {}
    distances = {"fd_alexnet_std": scores.frechet_distance, "kid_alexnet_std": scores.kernel_distance}
    return {
        name: scores.by_subject(
            lambda part, distance=distance: distance(ours, part),
            reference,
            manifest["subject"],
            rounds=evaluate.subsample_rounds,
            fraction=evaluate.subsample_fraction,
            seed=evaluate.seed,
        )
        for name, distance in distances.items()
    }


def _rounded(value):
    """Six significant digits: `dvc metrics diff` stays readable, and nothing smaller means anything."""
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return float(f"{value:.6g}")


if __name__ == "__main__":
    common.run(main)
