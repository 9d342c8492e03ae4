"""Which snapshot is kept, and when fine-tuning stops."""

import numpy as np
import pytest

from synthmri.evaluation import copies, stopping


def curve(kid, memorised=None):
    memorised = [0.0] * len(kid) if memorised is None else memorised
    return [stopping.Snapshot(k, 0.5, 0.5, m) for k, m in zip(kid, memorised, strict=True)]


@pytest.mark.parametrize(
    "kid, memorised, which",
    [
        ([3, 2, 1], None, 2),
        ([3, 1, 2], None, 1),
        ([3, 2, 1], [0, 0.04, 0.5], 1),  # the nearest copies
        ([3, 2, 1], [0, 0, 0.08], 2),  # 2 of 25: chance gives honest images as many
        ([3, 2, 1], [0, 0, 0.16], 1),  # 4 of 25: chance gives them rarely
        ([3, 2, 1], [0.9, 0.3, 0.4], 1),  # all copy: the one that does it least
        ([1, 3, 2], None, 2),  # the model before fine-tuning is scored as one of its own
        ([1, 3, 2], [0, 0.5, 0.9], 0),  # unless all others copy
        ([1], None, 0),
    ],
)
def test_the_nearest_that_copies_nobody_is_kept(kid, memorised, which):
    assert stopping.kept(curve(kid, memorised), 25) == which


def test_it_stops_when_nothing_better_has_come():
    assert [stopping.over(curve([5, 4, 3, 4, 5, 6][:n]), 25, 2) for n in range(1, 7)] == [False] * 4 + [True] * 2
    assert not stopping.over(curve([1, 2, 3, 4, 5]), 25, 0)
    # coming nearer by copying is no progress
    assert stopping.over(curve([5, 4, 3, 2], [0, 0, 0.5, 0.9]), 25, 2)


def test_copies_of_training_slices_are_told_from_other_people():
    rng = np.random.default_rng(0)

    def heads(n):
        small = rng.normal(size=(n, 12, 12))
        return (np.kron(small, np.ones((6, 6))) * 30 + 128 + rng.normal(size=(n, 72, 72))).clip(0, 255).astype(np.uint8)

    train, val = heads(30), heads(40)
    honest = copies.likeness(val, train).largest
    features = rng.normal(size=(20, 8))

    def memorised(images):
        return stopping.snapshot(images, features, train, rng.normal(size=(40, 8)), honest).memorised

    assert memorised(train[:20]) > 0.9 and memorised(heads(20)) < 0.3


def test_few_images_have_no_recall():
    found = stopping.snapshot(
        np.zeros((3, 64, 64), np.uint8), np.eye(3), np.zeros((4, 64, 64), np.uint8), np.eye(3) + 1, np.zeros(3)
    )
    assert found.recall == found.coverage == 0 and np.isfinite(found.kid)
