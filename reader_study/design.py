"""A blinded reader study: which images, matched how, shown to whom in which order, and what it can show.

A case is one test slice and one image of each model of the same contrast and about the same level. Every reader
sees every image once, in an order of their own, and some a second time.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from pydantic import Field
from scipy.optimize import linear_sum_assignment

from synthmri.errors import UserError
from synthmri.imageset import ImageSet
from synthmri.params import Section
from synthmri.scans import splits

QUESTIONS = {  # anchors of each scale, 1 to 5
    "realism": (
        "clearly artificial",
        "probably artificial",
        "undecided",
        "probably a real scan",
        "indistinguishable from real",
    ),
    "plausibility": ("impossible anatomy", "major errors", "minor errors", "almost all plausible", "fully plausible"),
}
TAGS = {  # key -> artefact
    "q": "blur", "w": "noise", "e": "grid or stripes", "t": "ghosting", "y": "asymmetry", "i": "missing part",
    "o": "doubled part",
}  # fmt: skip
_WRONG_CONTRAST_MM = 1e6  # so much worse than any level that it is taken only where nothing else is left


class Study(Section):
    """Section `study`."""

    seed: int = Field(ge=0)
    readers: int = Field(ge=1, le=100)
    cases: int = Field(ge=4, le=1000)
    repeats: float = Field(ge=0, le=0.25)


BLOCK_CASES = 5  # images of each source in a block of the order; 1 would tell readers that one of six is real
# Assumed for the power estimate, in points of the scale: how images of one source spread, and readers about one image.
CASE_SD, READER_SD = 0.6, 0.8


@dataclass(frozen=True)
class Item:
    """One image of a packet: where it comes from, and the case it belongs to."""

    source: str
    row: int
    case: int
    contrast: str
    level_mm: float  # below the vertex; NaN where it is not known


def sha256(image: np.ndarray) -> str:
    """Of the pixels and their shape, so that a rating belongs to an exact image. image: uint8 (H, W)."""
    return hashlib.sha256(f"{image.shape}".encode() + np.ascontiguousarray(image).tobytes()).hexdigest()


def choose(test: ImageSet, models: dict[str, ImageSet], p: Study) -> list[Item]:
    """`p.cases` matched cases: test slices of as many people as there are, and their partners from each model.

    Nothing says which level a model drew, so the contrast and level of a synthetic image are those of the test
    slice that it correlates with most, at 32 x 32 pixels: one rule for all models. Partners are then assigned without
    replacement so that the levels differ least in total.
    Raises UserError for sets that are too small or of unequal size of image.
    """
    for name, found in {"test slices": test, **models}.items():
        if len(found) < p.cases:
            raise UserError(
                f"{name}: {len(found)} images for study.cases = {p.cases}; lower it, or have more (sample.n for models)"
            )
        if found.images.shape[1:] != test.images.shape[1:]:
            raise UserError(
                f"{name}: images of {found.images.shape[1:]} pixels, test slices of {test.images.shape[1:]}; "
                "their size would give them away; run `dvc repro`"
            )
    rng = np.random.default_rng(p.seed)
    manifest = test.manifest
    contrasts = [str(c) for c in manifest["contrast"]] if "contrast" in manifest else [""] * len(test)
    levels = np.array([float(v) if v else math.nan for v in manifest.get("depth_mm", [""] * len(test))])
    shuffled = rng.permutation(len(test))
    turn = manifest.iloc[shuffled].groupby("subject", sort=False).cumcount() if "subject" in manifest else None
    rows = shuffled if turn is None else shuffled[np.argsort(turn.to_numpy(), kind="stable")]
    rows = np.sort(rows[: p.cases])
    items = [Item("real", int(row), case, contrasts[row], float(levels[row])) for case, row in enumerate(rows)]
    thumbnails = splits.thumbnails(test.images)
    for name, found in models.items():
        order = rng.permutation(len(found))  # among equally near levels, chance decides and not the seed
        nearest = (splits.thumbnails(found.images)[order] @ thumbnails.T).argmax(axis=1)  # (M,) rows of test
        cost = np.nan_to_num(np.abs(levels[nearest][None, :] - levels[rows][:, None]))
        wrong = np.array([[contrasts[j] != contrasts[row] for j in nearest] for row in rows])
        cases, columns = linear_sum_assignment(cost + _WRONG_CONTRAST_MM * wrong)
        for case, column in zip(cases, columns, strict=True):
            near = nearest[column]
            items.append(Item(name, int(order[column]), int(case), contrasts[near], float(levels[near])))
    return items


def mismatch(items: list[Item]) -> dict[str, tuple[float, float]]:
    """Model -> (share of its images of their case's contrast, mean distance in level to the real slice in mm)."""
    real = {item.case: item for item in items if item.source == "real"}
    out = {}
    for name in dict.fromkeys(item.source for item in items if item.source != "real"):
        part = [item for item in items if item.source == name]
        same = float(np.mean([item.contrast == real[item.case].contrast for item in part]))
        gaps = [abs(item.level_mm - real[item.case].level_mm) for item in part]
        out[name] = (same, float(np.mean(gaps)))
    return out


def names(items: list[Item], p: Study, secret: int) -> list[str]:
    """A random name of each item, all different; its order says nothing.

    secret: without it, whoever has this code and the seed would know what stands behind a name.
    """
    rng = np.random.default_rng([p.seed, 1, secret])
    out: dict[str, None] = {}
    while len(out) < len(items):
        out[rng.bytes(8).hex()] = None
    return list(out)


def order(items: list[Item], p: Study, reader: int, secret: int) -> list[tuple[int, bool]]:
    """(index of item, is it shown for the second time) in the order of one reader, which a secret shuffles as in names.

    In blocks: each holds as many images of every source, of cases drawn apart, so that neither a case nor the frequency
    of real images can be recognised. What is repeated was first seen in the first half, and comes again in the last
    quarter.
    """
    rng = np.random.default_rng([p.seed, 2, reader, secret])
    by_source: dict[str, list[int]] = {}
    for i, item in enumerate(items):
        by_source.setdefault(item.source, []).append(i)
    columns = [rng.permutation(rows) for rows in by_source.values()]
    shown: list[int] = []
    for start in range(0, p.cases, BLOCK_CASES):
        block = np.concatenate([column[start : start + BLOCK_CASES] for column in columns])
        shown += [int(i) for i in rng.permutation(block)]
    early = set(shown[: len(shown) // 2])
    repeated = []
    for column in columns:
        candidates = [int(i) for i in column if int(i) in early]
        repeated += [int(i) for i in rng.permutation(candidates)[: repeats_of_a_source(p)]]
    out = [(i, False) for i in shown]
    last_quarter = len(out) - len(out) // 4
    for i in rng.permutation(repeated):
        out.insert(int(rng.integers(last_quarter, len(out) + 1)), (int(i), True))
    return out


def repeats_of_a_source(p: Study) -> int:
    """Images of each source that are shown twice; at least one where repeats are asked for at all."""
    return max(1, round(p.repeats * p.cases)) if p.repeats > 0 else 0


def detectable_difference(p: Study, models: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest mean difference from real, in points of the scale, that the study finds with this power.

    By the t test's power for paired differences over cases, with Holm's strictest level alpha / models and the
    Wilcoxon test's efficiency 3 / pi for normal differences. A difference of a case has the variance of two images
    (CASE_SD, taken as unrelated although matched) and of two ratings averaged over readers (READER_SD): both are
    assumptions until there are ratings. None where even unanimous cases give no p value that small.
    """
    from statsmodels.stats.power import TTestPower

    if 2.0 ** (1 - p.cases) > alpha / models:
        return None
    spread = math.sqrt(2 * CASE_SD**2 + 2 * READER_SD**2 / p.readers)
    solve = TTestPower().solve_power
    return float(solve(nobs=p.cases * 3 / math.pi, alpha=alpha / models, power=power)) * spread
