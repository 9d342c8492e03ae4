"""A blinded reader study: which images, matched how, shown to whom in which order, and what it can show.

Of two designs. `rating`: one image at a time is rated; a case is one test slice and one image of each model of the same
contrast and about the same level. `forced_choice`: of two images side by side the real one is to be found; a case is a
test slice and one image of one model, and no real slice comes in two pairs, or its return would tell it.

Every rater sees every trial once, in an order of their own, and some a second time. Between them are controls, known to
be bad, which show whether a rater attends.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field
from scipy import stats
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
REAL, CONTROL = "real", "control"  # sources; any other is a model's name
TILES = 8  # of each side of a control
_WRONG_CONTRAST_MM = 1e6  # so much worse than any level that it is taken only where nothing else is left


class Study(Section):
    """Section `study`."""

    seed: int = Field(ge=0)
    design: Literal["rating", "forced_choice"]
    raters: int = Field(ge=1, le=100)
    cases: int = Field(ge=4, le=1000)
    repeats: float = Field(ge=0, le=0.25)
    controls: int = Field(ge=0, le=20)


BLOCK_CASES = 5  # images of each source in a block of the order; 1 would tell raters that one of six is real
# Assumed for the power estimate, in points of the scale: how images of one source spread, and raters about one image.
CASE_SD, RATER_SD = 0.6, 0.8


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


def spoiled(image: np.ndarray) -> np.ndarray:
    """A control: uint8 (H, W) of the same greys, its tiles shuffled, so that whoever looks sees that it is no head.

    Always the same shuffle, so that a rating of it can be recognised without being told.
    """
    high, wide = image.shape[0] // TILES, image.shape[1] // TILES
    inner = image[: high * TILES, : wide * TILES].reshape(TILES, high, TILES, wide).swapaxes(1, 2)
    tiles = inner.reshape(TILES**2, high, wide)[np.random.default_rng(0).permutation(TILES**2)]
    out = image.copy()
    out[: high * TILES, : wide * TILES] = (
        tiles.reshape(TILES, TILES, high, wide).swapaxes(1, 2).reshape(high * TILES, wide * TILES)
    )
    return out


def choose(test: ImageSet, models: dict[str, ImageSet], p: Study) -> list[Item]:
    """`p.cases` matched cases: test slices of as many people as there are, and their partners from each model; and
    `p.controls` controls, the spoiled picture (`spoiled`) of the test slice that their row names.

    Nothing says which level a model drew, so the contrast and level of a synthetic image are those of the test
    slice that it correlates with most, at 32 x 32 pixels: one rule for all models. Partners are then assigned without
    replacement so that the levels differ least in total.

    In a forced choice each model has cases of its own, and each control a case with a test slice.
    Raises UserError for sets that are too small or of unequal size of image.
    """
    pairs = p.design == "forced_choice"
    needed = p.cases * (len(models) if pairs else 1) + (2 * p.controls if pairs else 0)
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
    if len(test) < needed:
        most = (len(test) - 2 * p.controls) // len(models)
        raise UserError(
            f"a forced choice shows no real slice in two pairs, so study.cases = {p.cases} of {len(models)} models and "
            f"study.controls = {p.controls} need {needed} test slices; these are {len(test)}: lower study.cases to "
            f"{max(most, 0)}, or choose study.design rating"
        )
    rng = np.random.default_rng(p.seed)
    manifest = test.manifest
    contrasts = [str(c) for c in manifest["contrast"]] if "contrast" in manifest else [""] * len(test)
    levels = np.array([float(v) if v else math.nan for v in manifest.get("depth_mm", [""] * len(test))])
    shuffled = rng.permutation(len(test))
    turn = manifest.iloc[shuffled].groupby("subject", sort=False).cumcount() if "subject" in manifest else None
    by_turn = shuffled if turn is None else shuffled[np.argsort(turn.to_numpy(), kind="stable")]

    def item(source: str, row: int, case: int) -> Item:
        return Item(source, int(row), case, contrasts[row], float(levels[row]))

    # Model after model has its share of everybody's slices: every so many-th.
    share = {name: by_turn[i : needed : len(models)][: p.cases] if pairs else by_turn[: p.cases]
             for i, name in enumerate(models)}  # fmt: skip
    items, next_case = [], 0
    thumbnails = splits.thumbnails(test.images)
    for name, found in models.items():
        rows = np.sort(share[name])
        if pairs or not items:
            items += [item(REAL, row, next_case + case) for case, row in enumerate(rows)]
        order = rng.permutation(len(found))  # among equally near levels, chance decides and not the seed
        nearest = (splits.thumbnails(found.images)[order] @ thumbnails.T).argmax(axis=1)  # (M,) rows of test
        cost = np.nan_to_num(np.abs(levels[nearest][None, :] - levels[rows][:, None]))
        wrong = np.array([[contrasts[j] != contrasts[row] for j in nearest] for row in rows])
        cases, columns = linear_sum_assignment(cost + _WRONG_CONTRAST_MM * wrong)
        for case, column in zip(cases, columns, strict=True):
            near = nearest[column]
            items.append(Item(name, int(order[column]), next_case + int(case), contrasts[near], float(levels[near])))
        next_case += p.cases if pairs else 0
    next_case = next_case or p.cases
    # Of slices that come nowhere else, where there are enough.
    left = np.setdiff1d(by_turn, [i.row for i in items if i.source == REAL], assume_unique=True)
    left = np.random.default_rng([p.seed, 3]).permutation(left if len(left) >= p.controls else by_turn)
    for k in range(p.controls):
        if pairs:
            items.append(item(REAL, left[2 * k + 1], next_case + k))
        items.append(item(CONTROL, left[2 * k if pairs else k], next_case + k))
    return items


def pictures(items: list[Item], test: ImageSet, models: dict[str, ImageSet]) -> list[np.ndarray]:
    """What each item shows: uint8 (H, W)."""
    sets = {REAL: test, CONTROL: test, **models}
    shown = [np.asarray(sets[item.source].images[item.row]) for item in items]
    return [spoiled(image) if item.source == CONTROL else image for item, image in zip(items, shown, strict=True)]


def trials(items: list[Item], p: Study) -> list[tuple[int, ...]]:
    """Indices of the items that are shown at once: each alone, or (real, other) of a case. The last is in question."""
    if p.design == "rating":
        return [(i,) for i in range(len(items))]
    real = {item.case: i for i, item in enumerate(items) if item.source == REAL}
    return [(real[item.case], i) for i, item in enumerate(items) if item.source != REAL]


def mismatch(items: list[Item]) -> dict[str, tuple[float, float]]:
    """Model -> (share of its images of their case's contrast, mean distance in level to the real slice in mm)."""
    real = {item.case: item for item in items if item.source == REAL}
    out = {}
    for name in dict.fromkeys(item.source for item in items if item.source not in (REAL, CONTROL)):
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


def order(items: list[Item], p: Study, rater: int, secret: int) -> list[tuple[int, bool]]:
    """(index of trial, is it shown for the second time) in the order of one rater, which a secret shuffles as in names.

    In blocks: each holds as many trials of every source, of cases drawn apart, so that neither a case nor the frequency
    of real images can be recognised. What is repeated was first seen in the first half, and comes again in the last
    quarter. Controls are spread over the whole.
    """
    rng = np.random.default_rng([p.seed, 2, rater, secret])
    by_source: dict[str, list[int]] = {}
    for i, trial in enumerate(trials(items, p)):
        by_source.setdefault(items[trial[-1]].source, []).append(i)
    controls = by_source.pop(CONTROL, [])
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
    stretches = np.linspace(0, len(out), len(controls) + 1).astype(int)
    for k, i in reversed(list(enumerate(rng.permutation(controls)))):  # from behind: places before stay what they are
        out.insert(int(rng.integers(stretches[k], stretches[k + 1])), (int(i), False))
    return out


def sides(count: int, p: Study, rater: int, secret: int) -> np.ndarray:
    """Of each of `count` pairs in the order of one rater, whether it is turned: as often as not. bool (count,)."""
    return np.random.default_rng([p.seed, 4, rater, secret]).permutation(np.arange(count) % 2).astype(bool)


def repeats_of_a_source(p: Study) -> int:
    """Trials of each source that are shown twice; at least one where repeats are asked for at all."""
    return max(1, round(p.repeats * p.cases)) if p.repeats > 0 else 0


def detectable_difference(p: Study, models: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest mean difference from real, in points of the scale, that the study finds with this power.

    By the t test's power for paired differences over cases, with Holm's strictest level alpha / models and the
    Wilcoxon test's efficiency 3 / pi for normal differences. A difference of a case has the variance of two images
    (CASE_SD, taken as unrelated although matched) and of two ratings averaged over raters (RATER_SD): both are
    assumptions until there are ratings. None where even unanimous cases give no p value that small.
    """
    from statsmodels.stats.power import TTestPower

    if 2.0 ** (1 - p.cases) > alpha / models:
        return None
    spread = math.sqrt(2 * CASE_SD**2 + 2 * RATER_SD**2 / p.raters)
    solve = TTestPower().solve_power
    return float(solve(nobs=p.cases * 3 / math.pi, alpha=alpha / models, power=power)) * spread


def detectable_proportion(p: Study, models: int, *, power: float = 0.8, alpha: float = 0.05) -> float | None:
    """Smallest share of pairs in which most raters find the real one that this study tells from guessing.

    By the exact binomial test of the raters' majority over a model's cases, with Holm's strictest level alpha / models.
    None where even unanimous cases give no p value that small.
    """
    hits = np.arange(p.cases // 2 + 1, p.cases + 1)
    found = hits[[stats.binomtest(int(k), p.cases, 0.5).pvalue <= alpha / models for k in hits]]
    if not len(found):
        return None
    shares = np.arange(0.5, 1.0005, 0.001)
    return float(shares[np.argmax(stats.binom.sf(found.min() - 1, p.cases, shares) >= power)])
