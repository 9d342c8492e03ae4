"""Who the slices of an ImageSet are of, for a stage that resamples people."""

import numpy as np
import pandas as pd

from synthmri.evaluation import auroc


def of(manifest: pd.DataFrame, meta: dict) -> tuple[np.ndarray, int]:
    """Who each slice is of (N,), and how many pictures in a row stand for a person where that is not known of all.

    0 where it is, and of synthetic slices, which are nobody's.
    """
    if "subject" not in manifest:
        return np.zeros(len(manifest), np.int64), 0
    # The only knowledge of how many pictures in a row are of one person is this parameter of the splitting.
    block = max(1, meta.get("data", {}).get("border_gap", 1))
    return auroc.people(manifest, block), block if (manifest["subject"] == "").any() else 0


def caveat(runs: int) -> str:
    """What a reader must know where runs of so many files stand for people; "" for 0."""
    if not runs:
        return ""
    return f"Whose the slices are is not known: runs of {runs} files stand for people, so intervals are optimistic.\n"
