"""What the page of results shows, as plain lists for its template: rows of slices, distances, a short table."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from synthmri import imageset
from synthmri.reporting import comparison, inline
from synthmri.scans import prompts

SHOWN = 8  # slices of a row
STEPS = 9  # of a training
PAIRS = 8  # of a model
LEVELS, KINDS = 6, 3  # columns and kinds of prompt of the grid by what was asked for
WITHIN = ("base", "base_adapted", "real", "blurred")  # the references that the short table and the distances have
TICKS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


class Shot(NamedTuple):
    """A slice: its data URL, and what it is in words."""

    url: str
    alt: str


def shots(images: np.ndarray, rows: Sequence[int], words: Callable[[int], str]) -> list[Shot]:
    """Those rows of uint8 (N, H, W), which may be memory-mapped; words: of a row."""
    return [Shot(inline.slice_url(images[row]), words(row)) for row in rows]


class Dot(NamedTuple):
    """A row of the distances. at, low, high: of 100, on a logarithmic axis from left to right; kind: of what."""

    title: str
    kind: str
    text: str
    at: float
    low: float
    high: float


def distances(models: dict, references: dict) -> tuple[list[Dot], list[tuple[float, str]]]:
    """Each model and reference by its FD as a multiple of the floor, nearest first, and the ticks of their axis.

    Empty where the floor is no positive number. low and high: one standard error to each side.
    """
    floor = references["real"]["fd_effnet"]
    rows = [(title, _kind(name), models[name]) for name, title in comparison.MODELS.items()]
    rows += [(comparison.REFERENCES[name], "floor" if name == "real" else "other", references[name]) for name in WITHIN]
    rows = sorted(rows, key=lambda row: row[2]["fd_effnet"])
    if floor <= 0 or rows[0][2]["fd_effnet"] <= 0:
        return [], []
    reach = [(row["fd_effnet"] / floor, row.get("fd_effnet_std", 0) / floor) for *_, row in rows]
    left = min(value for value, _ in reach) / 1.15
    right = max(value + error for value, error in reach) * 1.15

    def place(value: float) -> float:
        return round(100 * math.log(max(value, left) / left) / math.log(right / left), 2)

    dots = [
        Dot(title, kind, f"{value:.1f}×", place(value), place(value - error), place(value + error))
        for (title, kind, _), (value, error) in zip(rows, reach, strict=True)
    ]
    return dots, [(place(tick), f"{tick:g}×") for tick in TICKS if left <= tick <= right]


def short_table(models: dict, references: dict, privacy: dict) -> tuple[list[str], list[tuple[str, str, list[str]]]]:
    """Headings, and rows of title, kind and cells; privacy: metrics/privacy.json. Unknown is "–"."""
    headings = ["model", "FD", "KID", "recall", "coverage", "memorised", "attack"]
    found = comparison.table(models, references)
    titles = comparison.MODELS | {name: comparison.REFERENCES[name] for name in WITHIN}
    rows = []
    for name, title in titles.items():
        row = found.loc[name]
        ratio = row.get("fd_effnet_ratio", math.nan)
        cells = ["–" if math.isnan(ratio) else f"{ratio:.1f}×"]
        cells += [f"{row[column]:.2f}" for column in ("kid_effnet", "recall", "coverage", "memorised")]
        attack = privacy.get(name, {}).get("mia_auroc")
        cells.append("–" if attack is None else f"{attack:.2f}")
        rows.append((title, _kind(name) if name in comparison.MODELS else "reference", cells))
    return headings, rows


def _kind(name: str) -> str:
    return "ours" if name == comparison.FINE_TUNED else "model"


def progress(stack: np.ndarray, table: pd.DataFrame, most: int = STEPS, seeds: int = SHOWN) -> list[dict]:
    """Points of a training, at even steps: the columns of `table` there, and `shots` of the same seeds.

    stack: uint8 (points, N, H, W), table: a row a point with fd_effnet, kid_effnet and images_seen, epoch where known,
    and kept, 1 for the point that training went back to: that one is always shown.
    """
    kept = np.flatnonzero(table["kept"]) if "kept" in table else []
    points = np.union1d(imageset.evenly(len(stack), most - len(kept)), kept).astype(int)
    return [
        table.iloc[point].to_dict() | {"shots": shots(stack[point], range(min(seeds, stack.shape[1])), _seed)}
        for point in points
    ]


def _seed(row: int) -> str:
    return f"seed {row}"


def pairs(
    made: np.ndarray, train: np.ndarray, table: pd.DataFrame, bound: float | None, most: int = PAIRS
) -> list[dict]:
    """The closest pairs: likeness, whether it is above the bound (None where that is not known), and two `shots`.

    table: of stage `evaluate`, with the columns image, train, mirrored and likeness.
    """
    found = []
    for row in table.head(most).itertuples():
        theirs = train[row.train][:, ::-1] if row.mirrored else train[row.train]
        found.append(
            {
                "likeness": row.likeness,
                "above": None if bound is None else row.likeness > bound,
                "mirrored": bool(row.mirrored),
                "ours": Shot(inline.slice_url(made[row.image]), "synthetic"),
                "theirs": Shot(inline.slice_url(theirs), "the training slice" + " mirrored" * row.mirrored),
            }
        )
    return found


def asked_grid(
    real: imageset.ImageSet, made: imageset.ImageSet
) -> tuple[list[int], list[tuple[str, list[Shot | None]]]]:
    """Levels (cm below the vertex), and for each kind of prompt a row of test people's and one of synthetic slices.

    A kind is a contrast and a label, as far as prompts name them; the KINDS that were asked for most are shown. A cell
    holds the first slice of its kind and level, None where there is none. Both are empty where prompts name no level.
    """
    named = [name for name in ("contrast", "label") if (made.manifest.get(name, pd.Series("")) != "").any()]
    tables = [_asked(found.manifest, named) for found in (real, made)]
    known = tables[1][tables[1]["level"] >= 0]
    if known.empty:
        return [], []
    levels = np.unique(known["level"])
    levels = levels[imageset.evenly(len(levels), LEVELS)]
    rows = []
    for kind in list(known["kind"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index)[
        :KINDS
    ]:
        for who, images, table in (("test people", real.images, tables[0]), ("synthetic", made.images, tables[1])):
            cells: list[Shot | None] = []
            for level in levels:
                rows_there = np.flatnonzero((table["kind"] == kind) & (table["level"] == level))
                words = f"{who}, {kind}, level {level}".replace(", ,", ",")
                cells.append(Shot(inline.slice_url(images[rows_there[0]]), words) if len(rows_there) else None)
            rows.append((f"{who}{', ' * bool(kind)}{kind}", cells))
    return [int(level) for level in levels], rows


def _asked(manifest: pd.DataFrame, named: list[str]) -> pd.DataFrame:
    """A row an image: kind (what the prompts name of it, in words), level in whole cm or -1."""

    def column(name: str) -> list[str]:
        return list(manifest[name]) if name in manifest else [""] * len(manifest)

    parts = zip(*map(column, named), strict=True) if named else [()] * len(manifest)
    return pd.DataFrame(
        {
            "kind": [", ".join(part for part in each if part and part != "unknown") for each in parts],
            "level": [prompts.level(float(depth)) if depth else -1 for depth in column("depth_mm")],
        }
    )


def changed(params: dict, defaults: dict, where: str = "") -> list[tuple[str, object, object]]:
    """Parameters that differ from the defaults, nested names joined by dots: name, here, by default."""
    found = []
    for key in [*params, *(key for key in defaults if key not in params)]:
        here, there = params.get(key), defaults.get(key)
        if isinstance(here, dict) and isinstance(there, dict):
            found += changed(here, there, f"{where}{key}.")
        elif here != there:
            found.append((f"{where}{key}", here, there))
    return found
