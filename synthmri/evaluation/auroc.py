"""Areas under the ROC curve where slices come in people.

Slices of one person are alike, so people are resampled and not slices. An area is a sum over pairs of a positive and a
negative slice (Mann-Whitney); kept as a table by pairs of people, any resampling of people is a weighted sum of it.
"""

import numpy as np
import pandas as pd


def people(manifest: pd.DataFrame, block: int) -> np.ndarray:
    """Who each slice is of: whole numbers (N,), from 0.

    Its subject where that is known, else every `block` slices of one label in the order of the files: they stand for
    people, of whom pictures do not tell.
    """
    runs = manifest["label"] + "/" + (manifest.groupby("label").cumcount() // max(1, block)).astype(str)
    return pd.factorize(manifest["subject"].where(manifest["subject"] != "", "/" + runs))[0]


def tables(scores: np.ndarray, positive: np.ndarray, who: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of a positive slice of person i and a negative one of person j: how many the positive wins, and how many.

    scores: (N,); positive: bool (N,); who: (N,) of 0 .. count - 1. Returns float64 (count, count) twice; ties are half.
    """
    wins = np.zeros((count, count))
    high, own = scores[positive], who[positive]
    for j in range(count):
        low = np.sort(scores[~positive & (who == j)])
        beaten = (np.searchsorted(low, high, "left") + np.searchsorted(low, high, "right")) / 2
        wins[:, j] = np.bincount(own, beaten, count)
    pairs = np.outer(np.bincount(own, minlength=count), np.bincount(who[~positive], minlength=count))
    return wins, pairs.astype(np.float64)


def area(wins: np.ndarray, pairs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The area with person i counted weights[r, i] times: (R, count) -> float64 (R,), NaN where no pair is left."""
    total, won = (((weights @ table) * weights).sum(axis=1) for table in (pairs, wins))
    return np.divide(won, total, out=np.full(len(weights), np.nan), where=total > 0)


ROUNDS = 1000  # resamplings of people that an interval comes from


def resampled(kinds: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """Bootstrap of people within each kind: float64 (rounds, len(kinds)), how often each is drawn.

    Those who are the only ones of their kind are one kind together: alone, each would be drawn once in every round.
    """
    _, of, counts = np.unique(kinds, return_inverse=True, return_counts=True)
    kinds = np.where(counts[of] == 1, -1, of)
    out = np.zeros((rounds, len(kinds)))
    for kind in np.unique(kinds):
        members = np.flatnonzero(kinds == kind)
        out[:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), rounds)
    return out


def interval(values: np.ndarray) -> tuple[float, float]:
    """The middle 95 % of bootstrap values."""
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
