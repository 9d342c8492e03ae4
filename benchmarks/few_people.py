"""Does a generator that trained on few people alone help a classifier that has the same few?

python -m benchmarks.few_people NAME --folder FOLDER --scratch FOLDER --people 2 --people 4

Stage `utility` lends the few a generator that learnt from all training people. Here the autoencoder is adapted, the
model fine-tuned and drawn from with the few alone, and the classifiers learn from the same: the case of the user with
few scans. It takes the time of these stages once for each number of people and draw. Run again, it goes on.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
import yaml
from scipy import stats

from benchmarks import arms, measure
from stages import _cli, _files
from synthmri import imageset
from synthmri.errors import UserError
from synthmri.evaluation import auroc, downstream
from synthmri.reporting import tables

STAGES = ("adapt", "encode", "finetune", "sample@latent_diffusion")  # as dvc.lock has them, with their commands


def main(
    name: Annotated[str, typer.Argument(help="of the result: benchmarks/results/few_people_NAME.json")],
    folder: Annotated[Path, typer.Option(help="where `dvc repro` has run: slices, models/base, params.yaml, dvc.lock")],
    scratch: Annotated[Path, typer.Option(help="folder outside the repository for the trainings, which is kept")],
    people: Annotated[list[int], typer.Option(min=1, help="numbers of training people")],
    draws: Annotated[int, typer.Option(min=1, help="of people, for each number")] = 5,
):
    """Write benchmarks/results/few_people_NAME.json: the arms for each number of people and draw."""
    train = imageset.read(folder / "data/slices/train")
    known = len(set(whose(train)))
    if known <= max(people):
        raise UserError(f"{known} training people are known, and --people asks for {max(people)} of them")
    result: dict = {}
    for number in people:
        for draw in range(draws):
            place = scratch / f"{number}_{draw}"
            if not (place / "utility.json").is_file():
                prepared(folder, place, chosen(train, number, draw))
                trained(folder, place)
            tree = json.loads((place / "utility.json").read_text(encoding="utf-8"))
            result.setdefault(str(number), {})[str(draw)] = tree
            print(f"{number} people, draw {draw}: {(place / 'utility.md').read_text(encoding='utf-8').splitlines()[0]}")
    measure.write(f"few_people_{name}", result)
    print(table(result))


def whose(train: imageset.ImageSet) -> np.ndarray:
    """(N,): a number for each person; of pictures that nobody knows, for each run of files that no split divides."""
    return auroc.people(train.manifest, train.meta.get("data", {}).get("border_gap", 1))


def table(result: dict) -> str:
    """Markdown: of each arm with synthetic slices the gain over its rival, mean over draws and its 95 % interval."""
    rows = []
    for number, draws in result.items():
        trees = list(draws.values())
        for arm in (name for name in downstream.ARMS if name not in downstream.RIVALS):
            gains = [tree[arm][share]["auroc_gain"] for tree in trees for share in tree.get(arm, {})]
            if len(gains) > 1:
                half = stats.t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
                cells = f"{np.mean(gains):+.3f} ({np.mean(gains) - half:+.3f} to {np.mean(gains) + half:+.3f})"
                rows.append([number, downstream.ARMS[arm].title, cells, str(len(gains))])
    return tables.markdown(["people", "arm", "AUROC gained", "draws"], rows)


def chosen(train: imageset.ImageSet, number: int, draw: int) -> imageset.ImageSet:
    """All slices of about `number` people, of each kind in its share and at least one."""
    labels, names = np.unique(train.manifest["label"].to_numpy(str), return_inverse=True)[::-1]
    who = np.unique(whose(train), return_inverse=True)[1]
    if len(names) < 2:
        raise UserError(f"the training slices have {len(names)} label(s), and a classifier needs two")
    share = number / (int(who.max()) + 1)
    return train.take(downstream.few(labels, who, share, draw))


def prepared(folder: Path, place: Path, train: imageset.ImageSet) -> None:
    """A folder with what the stages read, the few as its training slices."""
    with _files.replacing(place) as part:
        part.mkdir(parents=True)
        tree = yaml.safe_load((folder / _cli.PARAMS).read_text(encoding="utf-8"))
        tree["utility"] |= {"fractions": [1.0], "external": ""}
        (part / _cli.PARAMS.name).write_text(yaml.safe_dump(tree), encoding="utf-8")
        for name in ("data/slices/val", "data/slices/test", "data/features/val", "models/base"):
            shutil.copytree(folder / name, part / name)
        shutil.copy(folder / "models/sampling.json", part / "models")
        imageset.write(part / "data/slices/train", train)


def trained(folder: Path, place: Path) -> None:
    """Run the stages of the generator there, then `utility`, by the commands that made `folder`."""
    commands = yaml.safe_load((folder / "dvc.lock").read_text(encoding="utf-8"))["stages"]
    environment = os.environ | {
        "PYTHONPATH": str(arms.ROOT),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for stage in STAGES:
        for kept in ("data/progression", "data/samples", "metrics/training", "metrics/samples"):
            (place / kept).mkdir(parents=True, exist_ok=True)
        subprocess.run(commands[stage]["cmd"], shell=True, cwd=place, env=environment, check=True)
    arms.utility(
        place,
        {part: (place / "data/slices" / part).resolve() for part in ("train", "val", "test")}
        | {"samples": (place / "data/samples/latent_diffusion").resolve()},
    )


if __name__ == "__main__":
    _cli.run(main)
