"""Score one model's images against held-out people: `python -m stages.evaluate --help`."""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from stages import _cli, _files
from synthmri import generators, imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import distances, features, pairs, scorecard
from synthmri.reporting import plots

Set = Annotated[Path, typer.Option(help="ImageSet to read")]
Features = Annotated[Path, typer.Option(help="features of that set, folder of stages.features")]
CLOSEST = 10  # pairs of a generated and a train image that are shown
RECONSTRUCTED = 100  # held-out slices, at even steps, that go through the autoencoder


def main(
    generator: Annotated[
        str, typer.Option(help="module of the model, below synthmri.generators: latent_diffusion, vae, ...")
    ],
    model: Annotated[Path, typer.Option(help="folder of the trained model, for recon_*")],
    train: Set,
    train_features: Features,
    test: Set,
    test_features: Features,
    validation: Set,
    validation_features: Features,
    samples: Set,
    samples_features: Features,
    before_features: Annotated[Path, typer.Option(help="features before training, for fd_alexnet_reduction")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    picture: Annotated[Path, typer.Option(help="held-out beside synthetic, PNG to write")],
    closest: Annotated[Path, typer.Option(help="the pairs of synthetic and train that resemble most, PNG to write")],
) -> None:
    """Distances, resemblances, memorisation and, where there is an autoencoder, reconstruction."""
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "evaluate", scorecard.Evaluate)
    reference_set = reference(train, train_features, test, test_features, p)
    made = read_set(samples, p.min_images)
    values = _files.read_features(samples_features, len(made))
    if made.images.shape[1:] != reference_set.test.shape[1:]:
        raise UserError(
            f"{samples} holds images of {made.images.shape[1:]} pixels, {test} of {reference_set.test.shape[1:]}; "
            "run `dvc repro`"
        )
    # A Frechet distance grows as N falls, so all that is compared has one N and one reference: every held-out image.
    n = min(len(made), len(reference_set.train))
    rows, lpips = scorecard.draw(len(made), n, p.seed), features.lpips_model(device=runtime.device)
    result, compared, correlation, which = scorecard.score(made.images, values, rows, reference_set, p, lpips)
    held_back = imageset.read(validation)  # what a champion is chosen on: the test split must not be
    if len(held_back) >= p.min_images:
        seen = _files.read_features(validation_features, len(held_back))["alexnet"]
        result |= scorecard.validation(values["alexnet"], rows, seen, scorecard.known(held_back.manifest), p)
    else:
        print(
            f"{validation} holds {len(held_back)} images, below evaluate.min_images = {p.min_images}: no "
            "val_kid_alexnet, so no model can become champion of the registry",
            file=sys.stderr,
        )
    if samples_features != before_features:
        before = _files.read_features(before_features, len(made))["alexnet"]
        distance = distances.frechet_distance(distances.gaussian(before, rows), reference_set.test_features["alexnet"])
        result["fd_alexnet_before"] = distance
        result["fd_alexnet_reduction"] = (distance - result["fd_alexnet"]) / distance
    some = imageset.evenly(len(reference_set.test), RECONSTRUCTED)
    originals = np.array(reference_set.test[some])
    rebuilt = reconstruction(generator, model, originals, device=runtime.device, precision=precision)
    if rebuilt is not None:
        values_now = features.alexnet(rebuilt, batch=p.batch_size, device=runtime.device)
        pairs_now = pairs.resemblance(rebuilt, originals, lpips, batch=p.batch_size)
        result |= {f"recon_{name}": value for name, value in pairs_now.items()}
        result["recon_fd_alexnet"] = distances.frechet_distance(
            values_now, reference_set.test_features["alexnet"][some]
        )
    order = np.argsort(-correlation, kind="stable")[:CLOSEST]
    couples = np.concatenate([made.images[compared[order]], reference_set.train[which[order]]])
    captions = [f"r = {correlation[i]:.3f}" for i in order] + ["train"] * len(order)
    # Simulated data is called simulated, here too.
    source = imageset.read(test).meta.get("data", {}).get("source")
    title = "Held out, simulated cohort" if source == "simulated" else "Held out"
    with _files.replacing(metrics) as json, _files.replacing(picture) as beside, _files.replacing(closest) as sheet:
        _files.write_metrics(json, result)
        plots.save(plots.held_out_against_synthetic(reference_set.test, made.images, title=title), beside)
        plots.save(plots.contact_sheet(couples, columns=len(order), captions=captions), sheet)


def reference(
    train: Path, train_features: Path, test: Path, test_features: Path, p: scorecard.Evaluate
) -> scorecard.Reference:
    """Read what all models are measured against, checked."""
    train_set, test_set = read_set(train, p.min_images), read_set(test, p.min_images)
    if train_set.images.shape[1:] != test_set.images.shape[1:]:
        raise UserError(
            f"{train} holds images of {train_set.images.shape[1:]} pixels, {test} of {test_set.images.shape[1:]}; "
            "run `dvc repro`"
        )
    subjects = scorecard.known(test_set.manifest)
    if subjects is None:  # then absent: an invented spread would mislead
        print(
            "fewer than 2 held-out subjects are known, or some slices are of nobody known: no uncertainty (*_std)",
            file=sys.stderr,
        )
    train_values = _files.read_features(train_features, len(train_set))
    test_values = _files.read_features(test_features, len(test_set))
    # Equal sets leave a rounding error, some 1e-14.
    if distances.frechet_distance(train_values["alexnet"], test_values["alexnet"]) < 1e-9:
        raise UserError(f"{test} holds the images of {train}; split by subject again")
    return scorecard.Reference(train_set.images, test_set.images, train_values, test_values, subjects)


def reconstruction(
    generator: str, model: Path, images: np.ndarray, *, device: str, precision: str
) -> np.ndarray | None:
    """uint8 (N, H, W) through the model's autoencoder and back; None for a model without one."""
    found = generators.find(generator)
    if not hasattr(found, "reconstruct"):
        return None
    return found.load(model, device=device).reconstruct(images, batch_size=16, precision=precision)


def read_set(folder: Path, least: int) -> imageset.ImageSet:
    """An ImageSet of at least `least` images."""
    found = imageset.read(folder)
    if len(found) < least:
        raise UserError(
            f"{folder} holds {len(found)} images, below evaluate.min_images = {least}; add images or sample more, or "
            "lower the bound and trust the Frechet distance less"
        )
    return found


if __name__ == "__main__":
    _cli.run(main)
