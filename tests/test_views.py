"""Further views of a slice: the same head, a little moved; nothing that a scan could not show."""

import numpy as np
import pandas as pd
import pytest
import torch

from synthmri.evaluation import copies
from synthmri.training import loop, views


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_a_view_moves_a_point_by_no_more_than_it_may():
    image = np.zeros((1, 128, 128), np.uint8)
    image[0, 60:68, 100:108] = 200
    for seed in range(40):
        seen = views.further(image, generator(seed))[0][0].astype(float)
        y, x = (np.indices(seen.shape) * seen).reshape(2, -1).sum(1) / seen.sum()
        x = max(x, 127 - x)  # mirrored or not
        # 40 px from the centre: turned 3 degrees, stretched, moved, bent by four standard deviations
        reach = 40 * (np.deg2rad(views.TURN_DEG) + views.STRETCH) + 128 * (views.SHIFT + 4 * views.BEND) + 1
        assert np.hypot(y - 63.5, x - 103.5) < reach
        assert seen.sum() == pytest.approx(image.sum(), rel=0.3)


def test_views_are_other_pictures_of_the_same_head():
    rng = np.random.default_rng(0)
    heads = np.stack([np.kron(rng.random((16, 16)), np.ones((8, 8))) * 255 for _ in range(12)]).astype(np.uint8)
    seen, _ = views.further(heads, generator())
    assert seen.dtype == np.uint8 and seen.shape == heads.shape
    like = copies.likeness(seen, heads)
    assert (like.closest % 12 == np.arange(12)).all() and (like.largest < 0.99).all()
    assert 2 < (like.closest >= 12).sum() < 10  # some are mirrored


def test_a_sagittal_head_is_never_mirrored():
    """Its nose would point to where the coordinates of what is written say that the neck is."""
    rng = np.random.default_rng(0)
    heads = np.stack([np.kron(rng.random((16, 16)), np.ones((8, 8))) * 255 for _ in range(12)]).astype(np.uint8)
    may = views.mirrors(pd.DataFrame({"plane": ["sagittal", "axial", "coronal", ""] * 3}))
    np.testing.assert_array_equal(may, [False, True, True, True] * 3)
    turned = views.mirrored(heads, may)
    np.testing.assert_array_equal(turned[0], heads[0])
    np.testing.assert_array_equal(turned[1], heads[1, :, ::-1])
    for seed in range(3):
        like = copies.likeness(views.further(heads, generator(seed), mirrors=may)[0], heads)
        assert (like.closest[~may] < 12).all() and (like.closest[may] >= 12).any()
        drawn = loop.batch(heads, 40, generator(seed), may).numpy()[:, 0]
        like = copies.likeness(((drawn + 1) * 127.5).astype(np.uint8), heads)
        assert set() < set(like.closest[like.closest >= 12] - 12) <= set(np.flatnonzero(may))


def test_the_same_seed_gives_the_same_view():
    heads = np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.uint8)
    np.testing.assert_array_equal(views.further(heads, generator())[0], views.further(heads, generator())[0])
    assert (views.further(heads, generator(1))[0] != views.further(heads, generator())[0]).any()


def test_masks_go_with_their_heads():
    heads = np.zeros((8, 128, 128), np.uint8)
    heads[:, 40:70, 80:100] = 200
    masks = np.where(heads > 0, 255, 0).astype(np.uint8)
    seen, inside = views.further(heads, generator(), masks)
    np.testing.assert_array_equal(seen, views.further(heads, generator())[0])
    assert set(np.unique(inside)) == {0, 255}
    assert ((seen > 100) != (inside > 0)).mean() < 0.003 < (inside != masks).mean()
