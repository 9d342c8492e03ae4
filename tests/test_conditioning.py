"""Examiners of what prompts ask for: right on what they can see, at chance on what they cannot, silent on the rest."""

import numpy as np
import pandas as pd
import pytest

from synthmri.evaluation import conditioning


def made(n: int, seed: int, *, shown: float = 1.0):
    """Features that show level and label with noise of `1 - shown`, and what was asked."""
    rng = np.random.default_rng(seed)
    depth, lesion = rng.uniform(20, 110, n), rng.random(n) < 0.3
    directions = np.random.default_rng(99).normal(size=(2, 40))
    true = np.stack([(depth - 65) / 26, np.where(lesion, 2.0, -2.0)], axis=1)
    other = np.stack([rng.normal(size=n), np.where(rng.random(n) < 0.5, 2.0, -2.0)], axis=1)
    seen = np.where(rng.random((n, 1)) < shown, true, other)
    features = (seen @ directions + 0.1 * rng.normal(size=(n, 40))).astype(np.float32)
    table = pd.DataFrame({
        "depth_mm": [f"{value:.2f}" for value in depth], "label": np.where(lesion, "lesions", "none"), "contrast": "T1w"
    })  # fmt: skip
    return features, table


def test_images_that_show_what_was_asked_are_recognised():
    found = conditioning.agreement(*made(300, 0), *made(200, 1))
    assert found["level_error_cm"] < 0.15 and found["label_seen"] > 0.98
    assert list(found["levels"]) == [str(level) for level in range(2, 12)] and max(found["levels"].values()) < 0.3
    assert set(found["labels"]) == {"lesions", "none"}
    assert "contrast_seen" not in found  # there is one only


def test_images_that_ignore_what_was_asked_are_at_chance():
    found = conditioning.agreement(*made(300, 0), *made(400, 1, shown=0.0))
    assert found["label_seen"] == pytest.approx(0.5, abs=0.08)
    depth = np.random.default_rng(0).uniform(20, 110, 10_000)
    chance = np.abs(depth - 65 - 26 * np.random.default_rng(1).normal(size=10_000)).mean() / 10
    assert found["level_error_cm"] == pytest.approx(chance, rel=0.15)
    assert found["levels"]["2"] > found["levels"]["6"]  # a guess about the middle is worst at the ends


def test_each_label_counts_alike_however_rare():
    features, table = made(300, 1)
    always_none = features.copy()
    always_none[:] = features[(table["label"] == "none").to_numpy()][0]
    found = conditioning.agreement(*made(300, 0), always_none, table)
    assert found["labels"] == {"lesions": 0.0, "none": 1.0} and found["label_seen"] == 0.5


def test_what_is_not_named_is_not_examined():
    known, asked = made(300, 0), made(50, 1)
    assert set(conditioning.agreement(*known, asked[0], asked[1].assign(depth_mm="", label=""))) == set()
    assert set(conditioning.agreement(*known, asked[0], asked[1].drop(columns="label"))) == {"level_error_cm", "levels"}
    few = known[1].assign(label=["lesions"] * 3 + ["none"] * 297)  # three slices teach nothing
    assert "label_seen" not in conditioning.agreement(known[0], few, *asked)
