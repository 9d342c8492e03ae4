"""Figures. The same arrays give the same bytes of PNG: no dates, no versions, no state shared between figures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure  # without pyplot: it would ask for a display and keep every figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, NullFormatter
from PIL import Image, ImageDraw, ImageFont
from scipy.ndimage import binary_dilation

from synthmri import imageset
from synthmri.errors import UserError

_GAP = 4  # pixels between the images of a sheet


def contact_sheet(images: np.ndarray, columns: int, captions: Sequence[str] | None = None) -> Image.Image:
    """Images side by side, row after row, pixel for pixel, each with its caption below.

    images: uint8 (N, H, W) or, in colours, (N, H, W, 3), N at least 1; columns: images a row; captions: N texts, or
    None for a sheet without them. Returns a grey picture (mode L) or one in colours (RGB).
    Raises UserError for other shapes and counts.
    """
    coloured = images.ndim == 4 and images.shape[3] == 3
    if images.dtype != np.uint8 or not (coloured or images.ndim == 3) or len(images) == 0:
        raise UserError(f"a contact sheet takes uint8 (N, H, W), N at least 1; this is {images.dtype} {images.shape}")
    if columns < 1:
        raise UserError(f"columns = {columns}; a contact sheet has at least 1")
    if captions is not None and len(captions) != len(images):
        raise UserError(f"{len(captions)} captions for {len(images)} images; give one each, or None")
    height, width = images.shape[1:3]
    font = ImageFont.load_default(size=max(10, width / 16))
    caption = 0 if captions is None else round(font.size * 1.4)
    columns = min(columns, len(images))
    rows = -(-len(images) // columns)
    size = (columns * (width + _GAP) - _GAP, rows * (height + caption + _GAP) - _GAP)
    sheet = Image.new(*(("RGB", size, (255, 255, 255)) if coloured else ("L", size, 255)))
    draw = ImageDraw.Draw(sheet)
    for i, image in enumerate(images):
        x, y = i % columns * (width + _GAP), i // columns * (height + caption + _GAP)
        sheet.paste(Image.fromarray(np.asarray(image)), (x, y))
        if captions is not None:
            black = (0, 0, 0) if coloured else 0
            draw.text((x + width / 2, y + height + caption / 2), captions[i], black, font, anchor="mm")
    return sheet


OUTLINE = (230, 85, 0)  # told from grey by people who see no red, too


def outlined(images: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3): grey images with a line around what their masks, uint8 (N, H, W), have above 127."""
    inside = masks > 127
    around = binary_dilation(inside, np.ones((1, 3, 3))) & ~inside
    return np.where(around[..., None], np.array(OUTLINE, np.uint8), images[..., None].repeat(3, axis=3))


def real_against_synthetic(
    real: np.ndarray, synthetic: np.ndarray, *, title: str, columns: int = 4, rows: int = 4
) -> Figure:
    """Two sheets side by side: real images under `title` on the left, generated ones on the right.

    real: uint8 (N, H, W), synthetic: uint8 (M, H, W). Of each set `columns * rows` images are shown, at even steps
    through the set and not by choice; fewer where the set is smaller.
    """
    figure = Figure(figsize=(12, 12 * rows / columns / 2 + 0.9), dpi=150, layout="constrained")
    for axes, images, heading in zip(figure.subplots(1, 2), (real, synthetic), (title, "Synthetic"), strict=True):
        steps = imageset.evenly(len(images), columns * rows)
        axes.imshow(np.asarray(contact_sheet(images[steps], columns)), cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{heading} ({len(steps)} of {len(images)})", fontsize=16)
        axes.set_axis_off()
    return figure


def curve(
    xs: Sequence[Sequence[float]],
    series: Sequence[Sequence[float]],
    labels: Sequence[str],
    *,
    x_label: str,
    y_label: str,
    title: str,
    log_y: bool = False,
    ring: tuple[float, float] | None = None,
) -> Figure:
    """Lines over a common axis, as of losses over steps.

    series: one sequence of values a line; xs: their places, one sequence a line and as long; labels: one text a line;
    ring: (x, y) of a point that is marked.
    Raises UserError where the counts differ.
    """
    if not len(xs) == len(series) == len(labels):
        raise UserError(f"{len(xs)} xs, {len(series)} series and {len(labels)} labels; give one of each for every line")
    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    for x, y, label in zip(xs, series, labels, strict=True):
        if len(x) != len(y):
            raise UserError(f"line `{label}` has {len(x)} places for {len(y)} values; give as many")
        axes.plot(x, y, label=label, marker="o" if len(x) < 30 else None, markersize=4)
    if ring is not None:
        axes.plot(*ring, marker="o", markersize=12, markerfacecolor="none", markeredgecolor="black", linestyle="none")
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    if log_y:
        axes.set_yscale("log")
    axes.grid(alpha=0.3)
    if len(labels) > 1:
        axes.legend(frameon=False)
    return figure


def dots(names: Sequence[str], panels: dict[str, tuple[Sequence[float], Sequence[float], float | None]]) -> Figure:
    """Each model's score as a point, a panel a score: title -> (values, uncertainties, the floor as a line or None).

    The axis is logarithmic where values are positive and differ more than tenfold.
    """
    figure = Figure(figsize=(4.2 * len(panels), 0.45 * len(names) + 1.6), dpi=150, layout="constrained")
    for axes, (title, (values, spread, floor)) in zip(
        np.atleast_1d(figure.subplots(1, len(panels), sharey=True)), panels.items(), strict=True
    ):
        axes.errorbar(values, range(len(names)), xerr=spread, fmt="o", color="#4477aa", capsize=3)
        shown = [*values, *([] if floor is None else [floor])]
        if min(shown) > 0 and max(shown) > 10 * min(shown):
            axes.set_xscale("log")
            # Where an axis spans few decades, the usual labels of what lies between them overlap.
            few = max(shown) < 1000 * min(shown)
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=5))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter(NullFormatter())
        if floor is not None:
            axes.axvline(floor, color="#cc3311", linestyle="--", label="real, other people")
            axes.legend(frameon=False, fontsize=8)
        axes.set_title(title, fontsize=11)
        axes.set_yticks(range(len(names)), names)
        axes.grid(alpha=0.3)
    axes.invert_yaxis()
    return figure


def heat_map(table: pd.DataFrame, value: str) -> Figure:
    """`value` over steps and guidance, a panel a scheduler; the row whose `chosen` is 1 is framed.

    table: a row a combination, with the columns steps, guidance, scheduler, chosen and `value`; without that column, or
    where a combination is missing, cells are empty.
    """
    table = table.assign(**{value: table.get(value, np.nan)})
    schedulers = list(dict.fromkeys(table.scheduler))
    steps, guidance = sorted(set(table.steps)), sorted(set(table.guidance_scale))
    size = (1.5 + len(schedulers) * (1.2 + 0.9 * len(steps)), 1.6 + 0.6 * len(guidance))
    figure = Figure(figsize=(max(size[0], 4), size[1]), dpi=150, layout="constrained")
    low, high = (0.0, 1.0) if table[value].isna().all() else (table[value].min(), table[value].max())
    for axes, scheduler in zip(np.atleast_1d(figure.subplots(1, len(schedulers))), schedulers, strict=True):
        part = table[table.scheduler == scheduler]
        cells = part.pivot(index="guidance_scale", columns="steps", values=value).reindex(index=guidance, columns=steps)
        shown = axes.imshow(cells.to_numpy(float), cmap="viridis_r", vmin=low, vmax=high, aspect="auto")
        for row in part.itertuples():
            x, y, number = steps.index(row.steps), guidance.index(row.guidance_scale), getattr(row, value)
            dark = number > (low + high) / 2  # the lower, the brighter
            text = "not drawn" if np.isnan(number) else f"{number:.3g}"
            axes.text(x, y, text, ha="center", va="center", color="white" if dark else "black", fontsize=9)
            if row.chosen:
                frame = Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, fill=False, edgecolor="#cc3311", linewidth=2.5)
                axes.add_patch(frame)
        axes.set_xticks(range(len(steps)), steps)
        axes.set_yticks(range(len(guidance)), [f"{value:g}" for value in guidance])
        axes.set(xlabel="steps", ylabel="guidance_scale", title=scheduler)
    figure.suptitle("framed: chosen", fontsize=9)
    figure.colorbar(shown, ax=figure.axes, label=f"{value} on validation slices")
    return figure


def intervals(
    lines: dict[str, tuple[Sequence[str], Sequence[float], Sequence[float], Sequence[float]]],
    *,
    x_label: str,
    y_label: str,
    title: str,
    chance: float,
) -> Figure:
    """Points with intervals, a line a text: text -> (names of places, values, lower ends, upper ends).

    Places stand side by side in the order in which the lines name them; `chance` is dashed.
    """
    figure = Figure(figsize=(10, 4.5), dpi=150, layout="constrained")
    axes = figure.subplots()
    places = list(dict.fromkeys(place for x, *_ in lines.values() for place in x))
    for k, (label, (x, y, low, high)) in enumerate(lines.items()):
        step = 0.7 / len(lines)  # so that intervals do not hide each other
        aside = [places.index(place) + (k - (len(lines) - 1) / 2) * step for place in x]
        reach = [[b - a for a, b in zip(low, y, strict=True)], [b - a for a, b in zip(y, high, strict=True)]]
        axes.errorbar(
            aside, y, yerr=[[max(0.0, v) for v in side] for side in reach], label=label, marker="o", capsize=2,
            linestyle="", color=f"C{k % 10}",
        )  # fmt: skip
    axes.set_xticks(range(len(places)), places)
    axes.axhline(chance, color="#777777", linestyle="--", linewidth=1)
    axes.set(xlabel=x_label, ylabel=y_label, title=title)
    axes.grid(alpha=0.3)
    if lines:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)  # where no interval is
    return figure


def save(picture: Figure | Image.Image, path: Path) -> None:
    """Write a PNG, whatever the suffix of `path`; its folder must exist. The same picture gives the same bytes."""
    if isinstance(picture, Figure):
        picture.savefig(path, format="png", metadata={"Software": None})
    else:
        picture.save(path, format="PNG")
