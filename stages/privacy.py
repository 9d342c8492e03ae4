"""Can an attacker tell whose slices a model trained on? `python -m stages.privacy --help`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import typer

from stages import _cli, _files, _people
from synthmri import generators, imageset, params
from synthmri.evaluation import copies, membership
from synthmri.reporting import answers, comparison
from synthmri.scans import prompts

BEFORE = {"latent_diffusion": "base"}  # what a model was before it saw these slices, where that is known
MOST_PAIRS = 1000  # slices of each side that are sought among the synthetic ones; each takes some 10 ms
CAVEATS = """\
{pairs} training slices against as many of other people, alike in contrast, label and level; 0.5 is chance;
intervals are 95 %, over {people}. By distance: the largest likeness to a synthetic slice or its mirror image. By loss:
{loss_pairs} of each, the denoising error of the diffusion models, whose weights this attacker has; of latent diffusion
relative to the error of the base, which saw none of them. Of fewer than {least} people on a side no interval is known.
Stronger attacks exist.
"""


def main(
    slices: Annotated[Path, typer.Option(help="folder of the ImageSets train, val and test")],
    samples: Annotated[Path, typer.Option(help="folder of every model's ImageSet")],
    models: Annotated[Path, typer.Option(help="folder of the trained models")],
    metrics: Annotated[Path, typer.Option(help="JSON to write")],
    markdown: Annotated[Path, typer.Option(help="Markdown to write: the answer in a sentence, and the table")],
) -> None:
    """Membership inference by section `privacy`, for each model: train against validation and test slices."""
    runtime = _cli.start()
    precision = _cli.precision(runtime)
    p = params.read(_cli.PARAMS, "privacy", membership.Privacy)
    words = params.read(_cli.PARAMS, "prompt", prompts.Prompt)
    sets = {name: imageset.read(slices / name) for name in ("train", "val", "test")}
    members = sets["train"].manifest
    others = pd.concat([sets["val"].manifest, sets["test"].manifest], ignore_index=True)
    ours, theirs = membership.matched(members, others)
    most = imageset.evenly(len(ours), MOST_PAIRS)
    ours, theirs = ours[most], theirs[most]
    sides = [_people.of(manifest, sets["train"].meta) for manifest in (members, others)]
    people = [who[rows] for (who, _), rows in zip(sides, (ours, theirs), strict=True)]
    runs = max(runs for _, runs in sides)
    kind = f"people, for whom runs of {runs} files stand where nobody knows them, so optimistic" if runs else "people"
    if len(ours) == 0:
        result = {name: {"mia_pairs": 0} for name in comparison.MODELS}
        verdict = "Not measured: no training and other people's slices are alike in contrast, plane, label and level.\n"
    else:
        near, far = imageset.rows(sets["train"].images, ours), _rows(sets, theirs)
        some = imageset.evenly(len(ours), p.loss_pairs)
        pictures = np.concatenate([near[some], far[some]])
        texts = prompts.prompts(members.iloc[ours[some]], words) + prompts.prompts(others.iloc[theirs[some]], words)
        result = {}
        for name in _cli.progress(list(comparison.MODELS), "attacked models"):
            made = imageset.read(samples / name).images
            alike = [copies.likeness(side, made).largest for side in (near, far)]
            attacks = {"distance": membership.attack(*alike, *people, p)}
            if hasattr(generators.find(name), "denoising_errors"):
                errors = [
                    generators.find(name).load(models / each, device=runtime.device).denoising_errors(
                        pictures, texts, p.timesteps, seed=0, batch_size=16, precision=precision
                    )
                    for each in (name, BEFORE.get(name)) if each
                ]  # fmt: skip
                found = np.split(membership.by_loss(*errors), 2)
                attacks["loss"] = membership.attack(*found, *(side[some] for side in people), p)
            result[name] = membership.worst(attacks) | {"mia_pairs": len(ours)}
        about = CAVEATS.format(pairs=len(ours), loss_pairs=len(some), people=kind, least=answers.LEAST_PEOPLE)
        verdict = f"{membership.markdown(result, comparison.MODELS)}\n\n{about}"
    with _files.replacing(metrics) as tree, _files.replacing(markdown) as text:
        _files.write_metrics(tree, result)
        text.write_text(verdict, encoding="utf-8")


def _rows(sets: dict[str, imageset.ImageSet], rows: np.ndarray) -> np.ndarray:
    """The images of rows of val and test, one after the other, without reading the rest."""
    first = len(sets["val"])
    return np.stack([sets["val"].images[i] if i < first else sets["test"].images[i - first] for i in rows])


if __name__ == "__main__":
    _cli.run(main)
