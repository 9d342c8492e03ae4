"""Prompts: the words that name a slice, in training and in sampling."""

import math
import string
from collections.abc import Sequence

import numpy as np
import pandas as pd
from pydantic import Field, field_validator

from synthmri.params import Section

PROMPT_FIELDS = ("contrast", "plane", "level", "label", "token")


class Prompt(Section):
    """Section `prompt`."""

    template: str
    token: str = Field(pattern=r"^(<[a-z0-9-]{1,30}>)?$")

    @field_validator("template")
    @classmethod
    def _fields(cls, value: str) -> str:
        check_template(value)
        return value


def check_template(template: str) -> None:
    """Raise ValueError unless every {field} of a prompt template is one of PROMPT_FIELDS."""
    try:
        names = [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]
    except ValueError as error:
        raise ValueError(f"{template!r} is no template ({error}); write fields as {{contrast}}") from None
    for name in names:
        if name not in PROMPT_FIELDS:
            raise ValueError(
                f"{{{name}}} is no field of a prompt; use {', '.join('{' + f + '}' for f in PROMPT_FIELDS)}"
            )


def level(depth_mm: float) -> int:
    """Whole centimetres below the vertex, halves upwards: rounded to the even, odd levels would have fewer slices."""
    return math.floor(depth_mm / 10 + 0.5)


def prompts(manifest: pd.DataFrame, p: Prompt) -> list[str]:
    """One prompt a row of a manifest. Of the first part between commas empty fields are left out; of the others, parts
    that have any.

    `level` is the slice's depth in whole centimetres below the vertex.
    """
    out = []
    for row in manifest.to_dict("records"):
        depth = row.get("depth_mm", "")
        level_cm = str(level(float(depth))) if depth else ""
        fields = {"token": p.token, "level": level_cm} | {
            key: row.get(key, "") for key in ("contrast", "plane", "label")
        }
        fields = {key: "" if value == "unknown" else value for key, value in fields.items()}
        parts = []
        for part in p.template.split(","):
            names = [name for _, name, _, _ in string.Formatter().parse(part) if name]
            if len(parts) == 0 or all(fields[name] for name in names):
                parts.append(" ".join(part.format(**fields).split()))
        out.append(", ".join(part for part in parts if part))
    return out


def asked(manifest: pd.DataFrame, p: Prompt) -> pd.DataFrame:
    """What the prompt of each row asks for: text columns contrast, depth_mm, label; "" where the template has no such
    field.
    """
    fields = {"contrast": "contrast", "depth_mm": "level", "label": "label"}
    told = {name: field for name, field in fields.items() if name in manifest and f"{{{field}}}" in p.template}
    return pd.DataFrame({name: manifest[name] if name in told else "" for name in fields}, index=manifest.index)


def drawn(known: Sequence, seeds: list[int]) -> list:
    """A prompt for each seed, of the training slices in a fixed random order, however many seeds."""
    order = np.random.default_rng(0).permutation(len(known))
    return [known[order[seed % len(known)]] for seed in seeds]
