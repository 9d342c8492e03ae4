"""What each arm of stage `utility` gains on a finished pipeline folder, and between which bounds it could lie.

python -m benchmarks.arms NAME --folder FOLDER                        (the synthetic slices that lie there)
python -m benchmarks.arms NAME --folder FOLDER --samples people       (real slices of half of the training people)
python -m benchmarks.arms NAME --folder FOLDER --samples noise        (copies of the training slices, with noise)

`people` and `noise` stand in for synthetic slices: what perfect ones would bring to one who has the other half of the
people, and what those bring that hold nothing new. `people` trains on that other half alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import typer

from benchmarks import measure
from stages import _cli
from synthmri import imageset
from synthmri.errors import UserError

ROOT = Path(__file__).parent.parent
NOISE = 8.0  # grey levels of 255, standard deviation


def main(
    name: Annotated[str, typer.Argument(help="of the result: benchmarks/results/arms_NAME.json")],
    folder: Annotated[Path, typer.Option(help="where `dvc repro` has run: its slices, samples and params.yaml")],
    samples: Annotated[Literal["synthetic", "people", "noise"], typer.Option(help="what is added to real ones")] = (
        "synthetic"
    ),
):
    """Write benchmarks/results/arms_NAME.json; the table goes to the screen."""
    slices = folder / "data/slices"
    if not (slices / "train").is_dir():
        raise UserError(f"{slices} holds no slices; name a folder in which `dvc repro` has run")
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        shutil.copy(folder / _cli.PARAMS, place)
        sets = {part: (slices / part).resolve() for part in ("train", "val", "test")}
        sets["samples"] = (folder / "data/samples/latent_diffusion").resolve()
        if samples != "synthetic":
            train = imageset.read(slices / "train")
            real, added = split(train) if samples == "people" else (train, noisy(train))
            for part, made in (("train", real), ("samples", added)):
                sets[part] = place / part
                imageset.write(sets[part], made)
        tree, text = utility(place, sets)
    measure.write(f"arms_{name}", {"samples": samples, **tree})
    print(text)


def utility(place: Path, sets: dict[str, Path]) -> tuple[dict, str]:
    """What stage `utility` says of ImageSets train, val, test and samples by the params.yaml of `place`."""
    (place / "external").mkdir(exist_ok=True)
    subprocess.run(
        [
            sys.executable, "-m", "stages.utility", "--train", sets["train"], "--validation", sets["val"],
            "--test", sets["test"], "--samples", sets["samples"], "--external", "external",
            "--metrics", "utility.json", "--markdown", "utility.md", "--picture", "utility.png",
        ],
        cwd=place, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True,
    )  # fmt: skip
    text = (place / "utility.md").read_text(encoding="utf-8")
    return json.loads((place / "utility.json").read_text(encoding="utf-8")), text


def split(train: imageset.ImageSet) -> tuple[imageset.ImageSet, imageset.ImageSet]:
    """The slices of one half of the people, and those of the other without any name of a person."""
    people = np.random.default_rng(0).permutation(sorted(set(train.manifest["subject"]) - {""}))
    if len(people) < 4:
        raise UserError(f"{len(people)} training people; halves of fewer than 4 tell nothing, take --samples noise")
    mine = train.manifest["subject"].isin(people[: len(people) // 2]).to_numpy()
    other = train.take(np.flatnonzero(~mine))
    return train.take(np.flatnonzero(mine)), imageset.ImageSet(other.images, other.manifest.drop(columns="subject"))


def noisy(train: imageset.ImageSet) -> imageset.ImageSet:
    """Copies of all slices with noise of NOISE grey levels, without any name of a person."""
    noise = np.random.default_rng(0).normal(0, NOISE, train.images.shape)
    images = (train.images + noise).round().clip(0, 255).astype(np.uint8)
    return imageset.ImageSet(images, train.manifest.drop(columns="subject"))


if __name__ == "__main__":
    _cli.run(main)
