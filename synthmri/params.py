"""params.yaml: one section -> one typed, frozen, strict class.

The classes stand beside the code that uses them, so that a new knob of one stage does not rerun the others.
"""

import difflib
import json
import math
from pathlib import Path
from typing import Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from synthmri.errors import UserError

MAX_VALUES = 100_000  # far above any section; YAML's aliases can make billions of a few lines


class Section(BaseModel):
    """Base of every section: unknown keys, wrong types and changes after reading are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


class Runtime(Section):
    """Section `runtime`: what every stage shares."""

    threads: int = Field(default=2, ge=1, le=1024)
    device: str = Field(default="cpu", pattern=r"^(cpu|cuda(:\d+)?)$")
    precision: Literal["auto", "bf16", "fp32", "fp16"] = "auto"


class Seed(Section):
    """The key `seed` at the top: of all that is random about trainings and about intervals."""

    seed: int = Field(ge=0, lt=2**32)


def read_seed(path: Path) -> int:
    """The key `seed`; errors as in `read`."""
    tree = _tree(path)
    return parse({key: tree[key] for key in ("seed",) if key in tree}, "", Seed, str(path)).seed


def read(path: Path, section: str, cls: type[S]) -> S:
    """Read one section of a YAML file as `cls`; a section within another is written `outer.inner`.

    Raises UserError naming key, value, bound and remedy when the file cannot be read, the section is missing, or a
    value is unknown, of the wrong type or out of bounds.
    """
    tree = _tree(path)
    for key in section.split("."):
        if not isinstance(tree, dict) or key not in tree:
            near = difflib.get_close_matches(key, [str(other) for other in tree or ()], n=1)
            hint = f"; is `{near[0]}` meant?" if near else ""
            raise UserError(f"{path}: section `{section}` is missing{hint}")
        tree = tree[key]
    return parse(tree, section, cls, str(path))


def _tree(path: Path) -> dict:
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:  # ValueError: a 13th month, 5000 digits
        raise UserError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no sections; restore it with `git checkout {path}`")
    return tree


def parse(values: object, section: str, cls: type[S], where: str = "params.yaml") -> S:
    """The same for a section that is already a mapping (JSON types only)."""
    if not _bounded(values):
        raise UserError(f"{where}: section `{section}` holds over {MAX_VALUES} values, or itself; mend its aliases")
    try:
        # The JSON route is the strict one that still takes a list for a tuple, which is what YAML has.
        return cls.model_validate_json(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        if not isinstance(error, ValidationError):
            raise UserError(
                f"{where}: section `{section}` holds a value that is no number, text, list or map: {error}"
            ) from None
        file = where if where.endswith(".yaml") else "params.yaml"
        lines = [_explain(item, section, cls, file) for item in error.errors()]
        raise UserError("\n".join([f"{where}: {len(lines)} value(s) cannot be used", *lines])) from None


def _bounded(values: object) -> bool:
    todo, seen = [values], 0
    while todo and seen <= MAX_VALUES:
        value = todo.pop()
        todo += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        seen += 1
    return not todo


def _explain(item: dict, section: str, cls: type[Section], file: str) -> str:
    key = ".".join([*filter(None, [section]), *map(str, item["loc"])])
    value = item["input"]
    if item["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), list(cls.model_fields), n=1)
        remedy = f"write `{near[0]}`" if near else f"remove it; the keys are {', '.join(cls.model_fields)}"
        return f"  {key} = {value!r}: unknown key; {remedy}"
    if item["type"] == "missing":
        return f"  {key}: missing; add it (see the comments in {file} at the last commit)"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] in ("float_type", "int_type") and isinstance(value, str):
        try:
            if math.isfinite(float(value)):
                message += f"; YAML reads {value} as text, write it with a decimal point ({float(value)!r})"
        except ValueError:
            pass
    return f"  {key} = {value!r}: {message[0].lower()}{message[1:]}; change it in {file}"
