"""Areas under the ROC curve against scikit-learn, and resampling of people."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from synthmri.evaluation import auroc


@pytest.fixture
def case():
    rng = np.random.default_rng(0)
    positive, who = rng.random(60) < 0.4, rng.integers(0, 7, 60)
    return np.round(rng.normal(positive, 1.0), 1), positive, who  # rounded: some are equal


def test_area_is_that_of_scikit_learn(case):
    scores, positive, who = case
    wins, pairs = auroc.tables(scores, positive, who, 7)
    assert auroc.area(wins, pairs, np.ones((1, 7)))[0] == pytest.approx(roc_auc_score(positive, scores))


def test_weights_repeat_people(case):
    scores, positive, who = case
    weights = np.array([[2.0, 0, 1, 3, 1, 0, 1]])
    rows = np.repeat(np.arange(60), weights[0, who].astype(int))
    expected = roc_auc_score(positive[rows], scores[rows])
    assert auroc.area(*auroc.tables(scores, positive, who, 7), weights)[0] == pytest.approx(expected)


def test_no_pair_has_no_area(case):
    assert np.isnan(auroc.area(*auroc.tables(*case, 7), np.zeros((1, 7))))[0]


def test_resampling_keeps_the_number_of_each_kind():
    kinds = np.array([0, 1, 1, 0, 1])
    weights = auroc.resampled(kinds, 50, np.random.default_rng(0))
    assert (weights[:, kinds == 0].sum(1) == 2).all() and (weights[:, kinds == 1].sum(1) == 3).all()
    assert len(np.unique(weights, axis=0)) > 5


def test_people_who_are_the_only_ones_of_their_kind_are_drawn_too():
    """One with lesions, one without, one with both kinds of slices: as three strata no round would differ."""
    weights = auroc.resampled(np.array([0, 1, 5, 2, 2]), 200, np.random.default_rng(0))
    assert weights[:, :3].std(axis=0).min() > 0.5 and (weights[:, :3].sum(1) == 3).all()
    assert (weights[:, 3:].sum(1) == 2).all()


def test_interval_of_one_slice_a_person_covers_as_often_as_it_says():
    """95 % intervals of 200 data sets whose true area is known: P(x > y) of N(1, 1) and N(0, 1) is 0.7602."""
    rng, covered = np.random.default_rng(1), 0
    kinds, who = np.repeat([0, 1], 30), np.arange(60)
    for _ in range(200):
        tables = auroc.tables(rng.normal(kinds, 1.0), kinds == 1, who, 60)
        low, high = auroc.interval(auroc.area(*tables, auroc.resampled(kinds, 200, rng)))
        covered += low <= 0.7602 <= high
    assert 0.88 < covered / 200 < 0.99


def test_people_are_subjects_or_runs_of_files():
    manifest = pd.DataFrame({"subject": ["a", "b", "a", *[""] * 5], "label": ["x"] * 3 + ["x"] * 3 + ["y"] * 2})
    who = auroc.people(manifest, 2)
    assert who[0] == who[2] != who[1] and set(who) == set(range(len(set(who))))
    assert len(set(who[3:6]) & set(who[6:])) == 0 and who[6] == who[7]
