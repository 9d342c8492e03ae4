"""Write a profile (an overlay of params.yaml) into params.yaml, comments kept: python -m stages.profile smoke"""

from pathlib import Path
from typing import Annotated

import typer
from ruamel.yaml import YAML

from stages import common
from synthmri.errors import UserError


def main(name: Annotated[str, typer.Argument(help="a file of profiles/, without .yaml")]):
    """Overlay profiles/NAME.yaml on params.yaml; `git checkout params.yaml` brings the defaults back."""
    source = Path("profiles") / f"{name}.yaml"
    if not source.is_file():
        there = ", ".join(sorted(p.stem for p in Path("profiles").glob("*.yaml")))
        raise UserError(f"there is no profile {name!r}; choose one of {there}")
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 200, True  # unquoted, a "no" would be read as false
    tree, overlay = yaml.load(common.PARAMS), yaml.load(source)
    merge(tree, overlay)
    with common.replacing(common.PARAMS) as part:
        yaml.dump(tree, part)
    print(f"params.yaml now holds profile {name}; `dvc repro` runs it, `git checkout params.yaml` takes it back")


def merge(tree: dict, overlay: dict, where: str = "") -> None:
    """Put the values of `overlay` over those of `tree`, in place. Raises UserError for a key that `tree` has not."""
    for key, value in overlay.items():
        if key not in tree:
            raise UserError(f"the profile sets {where}{key}, which params.yaml does not have")
        if isinstance(value, dict):
            merge(tree[key], value, f"{where}{key}.")
        else:
            tree[key] = value


if __name__ == "__main__":
    common.run(main)
