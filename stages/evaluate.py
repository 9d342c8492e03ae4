"""Score one model's images against the test people: `python -m stages.evaluate --help`."""

import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stages import _cli, _files
from synthmri import generators, imageset, params
from synthmri.errors import UserError
from synthmri.evaluation import conditioning, copies, distances, features, pairs, scorecard, shield
from synthmri.reporting import plots
from synthmri.training import perceptual

Set = Annotated[Path, typer.Option(help="ImageSet to read")]
Features = Annotated[Path, typer.Option(help="features of that set, folder of stages.features")]
CLOSEST = 10  # pairs of a generated and a train image that are shown
EXAMINED = 100  # slices of a set, at even steps, that the shield of `synthmri generate` judges
RECONSTRUCTED = 100  # test slices, at even steps, that go through the autoencoder


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
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    rounds: Annotated[
        Path, typer.Option(help="CSV to write: the scores of subsets of the test people, for ± of differences")
    ],
    picture: Annotated[Path, typer.Option(help="real slices of other people beside synthetic ones, PNG to write")],
    closest: Annotated[Path, typer.Option(help="the pairs of synthetic and train that resemble most, PNG to write")],
    pairs_table: Annotated[Path, typer.Option(help="CSV to write: which pairs these are, and how alike")],
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
    # A Frechet distance grows as N falls, so all that is compared has one N and one reference: every test image.
    n = min(len(made), len(reference_set.train))
    rows, lpips = scorecard.draw(len(made), n), perceptual.lpips_model(device=runtime.device)
    found = scorecard.score(made.images, values, rows, reference_set, p, lpips)
    result = found.numbers
    seen = imageset.read(validation)  # what a champion is chosen on: the test split must not be
    ours, theirs = (
        _files.read_features(folder, count)[scorecard.JUDGE]
        for folder, count in ((train_features, len(reference_set.train)), (validation_features, len(seen)))
    )
    if len(seen) >= p.min_images:
        result |= scorecard.validation(values[scorecard.JUDGE], rows, theirs, scorecard.known(seen.manifest), p)
        known = shield.known(reference_set.train, seen.images, ours, theirs)
        odd, alike = judged(made.images, values, known)
        result |= {"implausible": float(odd.mean()), "refused": float((odd | alike).mean())}
        odd, alike = judged(reference_set.test, reference_set.test_features, known)
        result |= {"implausible_of_real": float(odd.mean()), "refused_of_real": float((odd | alike).mean())}
    else:
        print(
            f"{validation} holds {len(seen)} images, below evaluate.min_images = {p.min_images}: no "
            f"val_kid_{scorecard.JUDGE}, so no model can become champion of the registry",
            file=sys.stderr,
        )
    if generators.find(generator).prompted:
        examiner = ours, imageset.read(train).manifest
        examined = {
            "asked": conditioning.agreement(*examiner, values[scorecard.JUDGE], made.manifest),
            "asked_of_real": conditioning.agreement(*examiner, theirs, seen.manifest),
        }
        result |= {name: scores for name, scores in examined.items() if scores}
    result |= rebuilt(generator, model, reference_set, lpips, p, device=runtime.device, precision=precision)
    couples, captions, which_pairs = nearest(made.images, reference_set.train, found.pairs)
    # Simulated data is called simulated, here too.
    source = imageset.read(test).meta.get("data", {}).get("source")
    title = "Test people, simulated cohort" if source == "simulated" else "Test people"
    with (
        _files.replacing(metrics) as json,
        _files.replacing(rounds) as table,
        _files.replacing(picture) as beside,
        _files.replacing(closest) as sheet,
        _files.replacing(pairs_table) as listed,
    ):
        _files.write_metrics(json, result)
        found.rounds.to_csv(table, index=False, float_format="%.6g", lineterminator="\n")
        plots.save(plots.real_against_synthetic(reference_set.test, made.images, title=title), beside)
        plots.save(plots.contact_sheet(couples, columns=len(which_pairs), captions=captions), sheet)
        which_pairs.to_csv(listed, index=False, float_format="%.6g", lineterminator="\n")


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
            "fewer than 2 test subjects are known, or some slices are of nobody known: no uncertainty (*_std)",
            file=sys.stderr,
        )
    train_values = _files.read_features(train_features, len(train_set))
    test_values = _files.read_features(test_features, len(test_set))
    # Equal sets leave a rounding error, some 1e-14.
    if distances.frechet_distance(*(values[scorecard.JUDGE] for values in (train_values, test_values))) < 1e-9:
        raise UserError(f"{test} holds the images of {train}; split by subject again")
    some = imageset.rows(test_set.images, scorecard.draw(len(test_set), p.pairwise_images))
    honest = copies.likeness(some, train_set.images).largest
    return scorecard.Reference(train_set.images, test_set.images, train_values, test_values, subjects, honest)


def judged(images: np.ndarray, values: dict[str, np.ndarray], known: shield.Known) -> tuple[np.ndarray, np.ndarray]:
    """Which of the images, with their features, are no plausible heads, and which are too like a training slice: of
    EXAMINED of them, bool each."""
    some = imageset.evenly(len(images), EXAMINED)
    _, alike, odd = shield.judge(imageset.rows(images, some), known, values[scorecard.JUDGE][some])
    return odd, alike


def rebuilt(
    generator: str, model: Path, real: scorecard.Reference, lpips, p: scorecard.Evaluate, *, device: str, precision: str
) -> dict[str, float]:
    """recon_*: how near test slices are to themselves through the model's autoencoder; nothing for one without."""
    found = generators.find(generator)
    if not hasattr(found, "reconstruct"):
        return {}
    some = imageset.evenly(len(real.test), RECONSTRUCTED)
    originals = np.array(real.test[some])
    images = found.load(model, device=device).reconstruct(originals, batch_size=16, precision=precision)
    values = features.extract(scorecard.JUDGE, images, batch=p.batch_size, device=device)
    result = pairs.resemblance(images, originals, lpips, batch=p.batch_size)
    distance = distances.frechet_distance(values, real.test_features[scorecard.JUDGE][some])
    return {f"recon_{name}": value for name, value in result.items()} | {
        f"recon_{scorecard.NAMES[scorecard.JUDGE]}": distance
    }


def nearest(made: np.ndarray, train: np.ndarray, found: scorecard.Pairs) -> tuple[np.ndarray, list[str], pd.DataFrame]:
    """The CLOSEST pairs: images and below them train slices, uint8 (2 N, H, W); captions; and which they are."""
    order = np.argsort(-found.likeness, kind="stable")[:CLOSEST]
    which, rows = found.closest[order], found.rows[order]
    mirrored = which >= len(train)
    captions = [f"{found.likeness[i]:.3f}" for i in order]
    captions += ["train, mirrored" if mirror else "train" for mirror in mirrored]
    table = pd.DataFrame({
        "image": rows, "train": which % len(train), "mirrored": mirrored.astype(int),
        "likeness": found.likeness[order],
    })  # fmt: skip
    return np.concatenate([made[rows], copies.views(train, which)]), captions, table


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
