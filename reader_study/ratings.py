"""Answers of blinded raters: agreement, intervals and tests. Answers in, numbers out.

A rating is a row of `COLUMNS["rating"]`, a forced choice one of `COLUMNS["forced_choice"]`. Scores pass between the
functions as float (raters, cases), NaN where nobody rated; what a case is: design.py.
"""

import csv
import math
from collections.abc import Collection
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import Field
from scipy import stats

from reader_study.design import CONTROL, REAL
from synthmri.errors import UserError
from synthmri.params import Section

# packet, image, case and source say what was shown, of a pair the source of what is not real; position and repeat when;
# revision counts withdrawn predecessors.
_SHOWN = ("packet", "reader", "position", "revision", "repeat", "image", "sha256", "source", "case")
COLUMNS = {
    "rating": (*_SHOWN, "realism", "verdict", "plausibility", "seconds", "tags", "comment"),
    "forced_choice": (*_SHOWN, "sha256_real", "real", "chosen", "seconds", "comment"),
}
COUNTS = ("position", "revision", "repeat", "case", "realism", "plausibility")
WORDS = {"verdict": ("real", "synthetic"), "real": ("left", "right"), "chosen": ("left", "right")}
KEY = ["packet", "reader", "position"]  # what a person rates once, however many exports it is in


class Raters(Section):
    """Section `raters`."""

    min_raters: int = Field(ge=1, le=1000)
    min_cases: int = Field(ge=1, le=10_000)


ROUNDS = 4000  # draws of raters and cases that an interval comes from


# Files ---------------------------------------------------------------------------------------------------------------


def read(path: Path, design: str = "") -> pd.DataFrame:
    """Answers of a CSV file, checked; of any design where none is named.

    Raises UserError naming the line that cannot be used.
    """
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as ratings ({error}); `git checkout` it or export again") from None
    if not isinstance(frame.index, pd.RangeIndex) or frame.isna().any(axis=None):  # pandas mends what it can
        raise UserError(f"{path} has rows that are too long or too short; `git checkout` it or export again")
    if tuple(frame.columns) not in ([COLUMNS[design]] if design else COLUMNS.values()):
        wanted = ", ".join(COLUMNS[design or "rating"])
        raise UserError(f"{path} has the columns {', '.join(frame.columns)}; ratings have {wanted}")
    for name in frame.columns.intersection(COUNTS):
        bad = frame[~frame[name].str.fullmatch(r"\d{1,6}")]
        _refuse(path, bad, name, "is no count")
        frame[name] = frame[name].astype(int)
    for name in frame.columns.intersection(("realism", "plausibility")):
        _refuse(path, frame[~frame[name].between(1, 5)], name, "is not from 1 to 5")
    for name in frame.columns.intersection(tuple(WORDS)):
        _refuse(path, frame[~frame[name].isin(WORDS[name])], name, f"is none of {', '.join(WORDS[name])}")
    for name in frame.columns.intersection(("sha256", "sha256_real")):
        _refuse(path, frame[~frame[name].str.fullmatch("[0-9a-f]{64}")], name, "is no SHA-256")
    _refuse(path, frame[frame.duplicated(KEY, keep="first")], "position", "is there twice; use `synthmri study merge`")
    return frame


def _refuse(path: Path, bad: pd.DataFrame, name: str, why: str) -> None:
    if len(bad):
        raise UserError(f"{path}, rating {bad.index[0] + 1}: {name} = {bad[name].tolist()[0]!r} {why}")


def write(path: Path, frame: pd.DataFrame) -> None:
    """CSV in a fixed order, so that the same answers give the same bytes."""
    frame.sort_values(KEY).to_csv(path, index=False, lineterminator="\n", quoting=csv.QUOTE_MINIMAL)


def merge(frames: list[pd.DataFrame]) -> pd.DataFrame:
    """All ratings, each once; of a rating that was withdrawn and given again, the last.

    Raises UserError where two exports hold different answers under the same rater, position and revision, or answers of
    two designs.
    """
    if len({tuple(frame.columns) for frame in frames}) > 1:
        raise UserError("these are ratings and forced choices; join each kind by itself")
    everything = pd.concat(frames, ignore_index=True).drop_duplicates()
    clash = everything[everything.duplicated([*KEY, "revision"])]
    if len(clash):
        row = clash.iloc[0]
        raise UserError(
            f"two exports differ in rater {row['reader']}, packet {row['packet']}, position {row['position']}: one "
            "was edited by hand; export again from the database"
        )
    return everything.sort_values([*KEY, "revision"]).drop_duplicates(KEY, keep="last").reset_index(drop=True)


# Statistics ----------------------------------------------------------------------------------------------------------


def interval(scores: np.ndarray, *, rounds: int = ROUNDS, seed: int = 0) -> tuple[float, float, float, float]:
    """Mean, its 95 % interval and its standard error, by drawing raters and cases anew together.

    Both are samples of a larger population, so both are resampled (the two-way pigeonhole bootstrap, Owen 2007,
    Annals of Applied Statistics 1). With few raters the interval is too narrow: five values have five values' spread.

    scores: (R, C) with NaN where nobody rated. Returns (mean, low, high, standard error).
    """
    raters, cases = scores.shape
    known = ~np.isnan(scores)
    filled = np.where(known, scores, 0.0)
    rng = np.random.default_rng(seed)
    of_raters = rng.multinomial(raters, np.full(raters, 1 / raters), rounds).astype(float)  # (B, R)
    of_cases = rng.multinomial(cases, np.full(cases, 1 / cases), rounds).astype(float)  # (B, C)
    total = np.einsum("br,rc,bc->b", of_raters, filled, of_cases, optimize=True)
    count = np.einsum("br,rc,bc->b", of_raters, known.astype(float), of_cases, optimize=True)
    means = total[count > 0] / count[count > 0]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(filled.sum() / known.sum()), float(low), float(high), float(means.std(ddof=1))


def icc(scores: np.ndarray) -> tuple[float, float] | None:
    """ICC(2,1) and ICC(2,k): absolute agreement of one rater, and of the mean of these k (Shrout and Fleiss 1979).

    scores: (k, n); cases that a rater did not rate are left out. None for fewer than two raters or cases, and where
    nothing varies.
    """
    x = scores[:, ~np.isnan(scores).any(axis=0)].T  # (n, k)
    n, k = x.shape
    if n < 2 or k < 2 or np.ptp(x) == 0:
        return None
    between = k * np.square(x.mean(axis=1) - x.mean()).sum() / (n - 1)
    raters = n * np.square(x.mean(axis=0) - x.mean()).sum() / (k - 1)
    rest = np.square(x - x.mean(axis=1, keepdims=True) - x.mean(axis=0) + x.mean()).sum() / ((n - 1) * (k - 1))
    single = between + (k - 1) * rest + k * (raters - rest) / n
    mean = between + (raters - rest) / n
    return (float((between - rest) / single), float((between - rest) / mean)) if single > 0 and mean > 0 else None


def krippendorff_alpha(scores: np.ndarray, level: str) -> float | None:
    """Agreement of any number of raters beyond chance, missing ratings allowed: 1 perfect, 0 as by chance.

    Krippendorff 2011, "Computing Krippendorff's alpha-reliability": 1 - observed over expected disagreement, from the
    matrix of coincidences. level: "nominal" (equal or not) or "ordinal" (ranks between the two count).
    scores: (R, C) with NaN. None where no case was rated twice or nothing varies.
    """
    values = np.unique(scores[~np.isnan(scores)])
    counts = (scores[:, :, None] == values).sum(axis=0).astype(float)  # (C, V): how often each case got each value
    counts = counts[counts.sum(axis=1) > 1]
    if not len(counts) or (counts.sum(axis=0) > 0).sum() < 2:
        return None
    pairs = np.einsum("cv,cw->cvw", counts, counts) - np.einsum("cv,vw->cvw", counts, np.eye(len(values)))
    coincidences = (pairs / (counts.sum(axis=1) - 1)[:, None, None]).sum(axis=0)
    margin = coincidences.sum(axis=1)
    if level == "nominal":
        distance = 1 - np.eye(len(values))
    else:
        rank = np.cumsum(margin) - margin / 2  # the middle of each value's ranks
        distance = np.square(rank[:, None] - rank[None, :])
    expected = (margin[:, None] * margin[None, :] * distance).sum() / (margin.sum() - 1)
    return float(1 - (coincidences * distance).sum() / expected)


def paired_p(model: np.ndarray, real: np.ndarray) -> float | None:
    """Two-sided Wilcoxon signed-rank test of a model against real, both (R, C); the unit is the case.

    Raters are averaged within a case, over those who rated both. None where no case has both.
    """
    gap = _mean_of_columns(model - real)
    gap = gap[~np.isnan(gap)].round(9)  # means of raters differ by rounding errors that would break ties
    if not len(gap):
        return None
    return float(stats.wilcoxon(gap).pvalue) if gap.any() else 1.0


def against_chance(real_called_real: np.ndarray, model_called_real: np.ndarray) -> dict[str, float] | None:
    """How well raters tell a model's images from real ones; both 1, 0 or NaN, (R, C), of the same cases. A rater
    counts where they rated both.

    `accuracy` is the mean of the share of real images called real and of the model's called synthetic: guessing gives
    0.5, however often a rater says "real". `accuracy_p` is the exact binomial test of the raters' majority on each
    image, ties left out: several raters' ratings of one image are not independent. Only cases in which both images
    have a majority count, so the two kinds are equally many and 0.5 is chance. None where nobody rated both.
    """
    both = ~np.isnan(real_called_real + model_called_real)
    if not both.any():
        return None
    real_called_real, model_called_real = (np.where(both, x, np.nan) for x in (real_called_real, model_called_real))
    right = [_mean_of_columns(real_called_real), 1 - _mean_of_columns(model_called_real)]
    decided = np.all([~np.isnan(share) & (share != 0.5) for share in right], axis=0)
    hits = sum(int((share[decided] > 0.5).sum()) for share in right)
    trials = 2 * int(decided.sum())
    accuracy = (np.nanmean(real_called_real) + 1 - np.nanmean(model_called_real)) / 2
    p = stats.binomtest(hits, trials, 0.5).pvalue if trials else 1.0
    return {"accuracy": float(accuracy), "accuracy_p": float(p), "accuracy_images": float(trials)}


def holm(p_values: list[float]) -> list[float]:
    """p values corrected for their number (Holm 1979)."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(p_values, method="holm")[1]] if p_values else []


def _mean_of_columns(values: np.ndarray) -> np.ndarray:
    """Mean over rows without the NaN; NaN for a column of nothing else."""
    known = ~np.isnan(values)
    count = known.sum(axis=0)
    return np.where(count > 0, np.where(known, values, 0).sum(axis=0) / np.maximum(count, 1), np.nan)


# Everything together -------------------------------------------------------------------------------------------------


def grid(frame: pd.DataFrame, values: pd.Series, raters: list, cases: list) -> np.ndarray:
    """`values` of the rows of `frame` as float (raters, cases), NaN where there is none; cases are (packet, case)."""
    out = np.full((len(raters), len(cases)), np.nan)
    rows = [raters.index(rater) for rater in frame["reader"]]
    columns = [cases.index(case) for case in zip(frame["packet"], frame["case"], strict=True)]
    out[rows, columns] = values[frame.index]
    return out


def counted(rated: np.ndarray, raters: list[str], inattentive: Collection[str], p: Raters) -> dict[str, float]:
    """What stands beside a score: of how many ratings, raters and cases it is, whether these are fewer than section
    `raters` asks (`few`), and how many of the raters missed controls. rated: bool (raters, cases)."""
    there = [rater for rater, any_of in zip(raters, rated.any(axis=1), strict=True) if any_of]
    cases = float(rated.any(axis=0).sum())
    return {
        "ratings": float(rated.sum()),
        "raters": float(len(there)),
        "cases": cases,
        "few": float(len(there) < p.min_raters or cases < p.min_cases),
        "inattentive": float(len(set(there) & set(inattentive))),
    }


def summary(frame: pd.DataFrame, models: list[str], p: Raters, inattentive: Collection[str] = ()) -> dict[str, dict]:
    """`models` -> name -> scores, `real`, and `agreement`, of ratings as `read` gives them; groups without ratings are
    absent, as is any number that is not defined for what was rated. Controls do not count.

    `few` = 1 marks a score of fewer raters or cases than section `raters` asks; it then has no `manual_score_std`,
    so that it cannot lead a table. inattentive: raters who missed controls; they count, and are counted.
    """
    frame = frame[frame["source"] != CONTROL]
    first = frame[frame["repeat"] == 0]
    raters = sorted(first["reader"].unique())
    cases = sorted(set(zip(first["packet"], first["case"], strict=True)))
    called_real = (frame["verdict"] == "real").astype(float)

    def scores(source: str, values: pd.Series) -> np.ndarray:
        return grid(first[first["source"] == source], values, raters, cases)

    def group(source: str) -> dict[str, float]:
        realism = scores(source, frame["realism"])
        counts = counted(~np.isnan(realism), raters, inattentive, p)
        mean, low, high, error = interval(realism)
        return {
            "manual_score": mean,
            "manual_score_low": low,
            "manual_score_high": high,
            **({} if counts["few"] else {"manual_score_std": error}),
            "plausibility": float(np.nanmean(scores(source, frame["plausibility"]))),
            "called_real": float(np.nanmean(scores(source, called_real))),
            **counts,
        }

    rated = set(first["source"])
    tree: dict[str, dict] = {}
    if REAL in rated:
        tree["real"] = group(REAL)
    of_models = {name: group(name) for name in models if name in rated}
    if REAL in rated:
        for name, result in of_models.items():
            gap = scores(name, frame["realism"]) - scores(REAL, frame["realism"])
            if not np.isnan(gap).all():
                mean, low, high, _ = interval(gap)
                result |= {"above_real": mean, "above_real_low": low, "above_real_high": high}
                result["above_real_p"] = paired_p(scores(name, frame["realism"]), scores(REAL, frame["realism"]))
            result |= against_chance(scores(REAL, called_real), scores(name, called_real)) or {}
        for column in ("above_real_p", "accuracy_p"):  # one question asked of every model: corrected for their number
            tested = [name for name in of_models if column in of_models[name]]
            for name, corrected in zip(tested, holm([of_models[n][column] for n in tested]), strict=True):
                of_models[name][f"{column}_holm"] = corrected
    if of_models:
        tree["models"] = of_models
    if agreement := _agreement(frame, scores, sorted(rated), called_real):
        tree["agreement"] = agreement
    return tree


def _agreement(frame: pd.DataFrame, scores, sources: list[str], called_real: pd.Series) -> dict[str, float]:
    """Between raters, over all images; and within each rater, over the images shown twice."""
    out: dict[str, float] = {}
    for name, values, level in (
        ("realism", frame["realism"], "ordinal"),
        ("plausibility", frame["plausibility"], "ordinal"),
        ("verdict", called_real, "nominal"),
    ):
        if not sources:
            continue
        images = np.concatenate([scores(source, values) for source in sources], axis=1)
        if (alpha := krippendorff_alpha(images, level)) is not None:
            out[f"{name}_alpha"] = alpha
        if level == "ordinal" and (both := icc(images)) is not None:
            out |= {f"{name}_icc_2_1": both[0], f"{name}_icc_2_k": both[1]}
    image = ["packet", "reader", "image"]
    twice = frame[frame["repeat"] == 0].merge(frame[frame["repeat"] == 1], on=image, suffixes=("_a", "_b"))
    if len(twice):
        apart = (twice["realism_a"] - twice["realism_b"]).abs()
        out |= {
            "intra_rater_pairs": float(len(twice)),
            "intra_rater_realism_equal": float((apart == 0).mean()),
            "intra_rater_realism_within_1": float((apart <= 1).mean()),
            "intra_rater_verdict_equal": float((twice["verdict_a"] == twice["verdict_b"]).mean()),
        }
    return {name: value for name, value in out.items() if math.isfinite(value)}
