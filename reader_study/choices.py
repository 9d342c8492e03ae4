"""Forced choices between a real slice and a model's: how often raters find the real one. Choices in, numbers out."""

from collections.abc import Collection

import numpy as np
import pandas as pd
from scipy import stats

from reader_study import ratings
from reader_study.design import CONTROL


def summary(
    frame: pd.DataFrame, models: list[str], p: ratings.Raters, inattentive: Collection[str] = ()
) -> dict[str, dict[str, float]]:
    """name -> scores of a model, of choices as `ratings.read` gives them; models that nobody saw are absent.

    `proportion_correct`: of first views; 0.5 is guessing, and what cannot be told apart. Its interval draws raters and
    cases anew (`ratings.interval`). `proportion_p` is the exact binomial test against 0.5 of the raters' majority on
    each pair (`pairs`), ties left out; `_holm` corrects it for the number of models.
    """
    first = frame[(frame["repeat"] == 0) & (frame["source"] != CONTROL)]
    raters = sorted(first["reader"].unique())
    correct = (frame["chosen"] == frame["real"]).astype(float)
    out: dict[str, dict[str, float]] = {}
    for name in [name for name in models if name in set(first["source"])]:
        part = first[first["source"] == name]
        cases = sorted(set(zip(part["packet"], part["case"], strict=True)))
        right = ratings.grid(part, correct, raters, cases)
        mean, low, high = proportion(right)
        share = np.nanmean(right, axis=0)
        decided = share[share != 0.5]
        p_value = stats.binomtest(int((decided > 0.5).sum()), len(decided), 0.5).pvalue if len(decided) else 1.0
        out[name] = {
            "proportion_correct": mean, "proportion_correct_low": low, "proportion_correct_high": high,
            "proportion_p": float(p_value), "pairs": float(len(decided)),
            **ratings.counted(~np.isnan(right), raters, inattentive, p),
        }  # fmt: skip
    for name, corrected in zip(out, ratings.holm([group["proportion_p"] for group in out.values()]), strict=True):
        out[name]["proportion_p_holm"] = corrected
    return out


def proportion(right: np.ndarray) -> tuple[float, float, float]:
    """Mean of 1, 0 or NaN, (R, C), and its 95 % interval by drawing raters and cases anew.

    Where all are right or all wrong, every draw is alike and would give an interval of no width; there it is the exact
    one (Clopper and Pearson 1934) of as many trials as cases.
    """
    mean, low, high, _ = ratings.interval(right)
    if mean in (0.0, 1.0):
        exact = stats.binomtest(int(mean) * right.shape[1], right.shape[1]).proportion_ci(0.95, method="exact")
        low, high = exact.low, exact.high
    return mean, float(low), float(high)
