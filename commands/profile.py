"""Write a profile (an overlay of params.yaml) into params.yaml, comments kept: synthmri profile smoke"""

from pathlib import Path
from typing import Annotated

import typer
from ruamel.yaml import YAML

from stages import _cli, _files
from synthmri.errors import UserError

ELSEWHERE = {"cohort": _cli.COHORT, "pretrain": _cli.PRETRAINING}


def main(name: Annotated[str, typer.Argument(help="a file of profiles/, without .yaml")]):
    """Overlay profiles/NAME.yaml on params.yaml; `git checkout params.yaml` brings the defaults back.

    Sections of the simulation (cohort, pretrain) stand in files of their own, and are overlaid there.
    """
    source = Path("profiles") / f"{name}.yaml"
    if not source.is_file():
        there = ", ".join(sorted(p.stem for p in Path("profiles").glob("*.yaml")))
        raise UserError(f"there is no profile {name!r}; choose one of {there}")
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 200, True  # unquoted, a "no" would be read as false
    parts: dict[Path, dict] = {}
    for section, values in yaml.load(source).items():
        parts.setdefault(ELSEWHERE.get(section, _cli.PARAMS), {})[section] = values
    trees = {file: yaml.load(file) for file in parts}
    for file, overlay in parts.items():
        merge(trees[file], overlay, file)
    for file, tree in trees.items():
        with _files.replacing(file) as part:
            yaml.dump(tree, part)
    there = " and ".join(map(str, trees))
    back = " ".join(map(str, trees))
    print(f"profile {name} is in {there}; `dvc repro` runs it, `git checkout {back}` takes it back")


def merge(tree: dict, overlay: dict, file: Path, where: str = "") -> None:
    """Put the values of `overlay` over those of `tree`, in place. Raises UserError for a key that `tree` has not."""
    for key, value in overlay.items():
        if key not in tree:
            raise UserError(f"the profile sets {where}{key}, which {file} does not have")
        if isinstance(value, dict):
            merge(tree[key], value, file, f"{where}{key}.")
        else:
            tree[key] = value


if __name__ == "__main__":
    _cli.run(main)
