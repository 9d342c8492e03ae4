"""Whether images show what their prompts ask for: level, contrast and label, as linear examiners see them.

The examiners learn on features of real training slices, so that validation slices say how far they can be trusted.
"""

import numpy as np
import pandas as pd

ASKED = ("depth_mm", "contrast", "label")  # columns of a manifest; "" where a slice has none, or a prompt names none
LEAST = 10  # slices of each contrast or label that an examiner learns from; of fewer it is not asked
PENALTIES = np.logspace(0, 5, 11)  # of the squared weights; the one is taken that predicts left-out slices best


def agreement(
    known: np.ndarray, known_table: pd.DataFrame, features: np.ndarray, table: pd.DataFrame
) -> dict[str, float | dict[str, float]]:
    """What examiners that learnt on `known` say of `features`: float32 (., D) each, with a row of ASKED an image.

    `level_error_cm`: mean absolute difference between the level asked for and the one seen (ridge regression), and
    `levels`: the same by the level asked for, in whole cm as prompts name it;
    `contrast_seen`, `label_seen`: the share that is recognised (logistic regression), averaged over contrasts or labels
    so that a frequent one counts as much as a rare one, and by the name of each. What cannot be examined is left out:
    fewer than two contrasts or labels, or fewer than LEAST slices of one in `known`.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    result: dict[str, float | dict[str, float]] = {}
    ours, theirs = _column(known_table, "depth_mm"), _column(table, "depth_mm")
    learnt, asked = ours != "", theirs != ""
    if learnt.sum() >= LEAST and asked.any():
        examiner = make_pipeline(StandardScaler(), RidgeCV(PENALTIES))
        examiner.fit(known[learnt], ours[learnt].astype(float))
        seen = examiner.predict(features[asked])
        wanted = theirs[asked].astype(float)
        error_cm, level_cm = np.abs(seen - wanted) / 10, np.floor(wanted / 10 + 0.5).astype(int)
        result["level_error_cm"] = float(error_cm.mean())
        result["levels"] = {str(level): float(error_cm[level_cm == level].mean()) for level in np.unique(level_cm)}
    for name in ("contrast", "label"):
        shares = _recognised(known, _column(known_table, name), features, _column(table, name))
        if shares:
            result[f"{name}_seen"] = float(np.mean(list(shares.values())))
            result[f"{name}s"] = shares
    return result


def _column(table: pd.DataFrame, name: str) -> np.ndarray:
    return table[name].to_numpy(dtype=str) if name in table else np.full(len(table), "")


def _recognised(known: np.ndarray, ours: np.ndarray, features: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Of the images of each class, the share in which it is seen."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    classes = [name for name in np.unique(ours) if name not in ("", "unknown") and (ours == name).sum() >= LEAST]
    asked = [name for name in classes if (theirs == name).any()]
    if len(classes) < 2 or not asked:
        return {}
    learnt = np.isin(ours, classes)
    examiner = make_pipeline(StandardScaler(), LogisticRegression(C=1e-3, class_weight="balanced", max_iter=1000))
    examiner.fit(known[learnt], ours[learnt])
    return {name: float((examiner.predict(features[theirs == name]) == name).mean()) for name in asked}
