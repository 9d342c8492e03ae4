"""Broken heads are told from real ones; people that nobody saw are not held for broken."""

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from synthmri import params, streams
from synthmri.evaluation import features, plausibility
from synthmri.simulation import pretraining


@pytest.fixture(scope="module")
def heads():
    """Simulated axial slices of one contrast, in three parts, with features."""
    run = params.read("pretrained/params.yaml", "pretrain", pretraining.Pretrain)
    sequences = {"T1w": run.unet.slices.scanner.sequences["T1w"]}
    slices = run.unet.slices.model_copy(
        update={
            "planes": {"axial": 1.0}, "depth_mm": (50.0, 90.0), "stripped": 0.0, "masked": 1.0, "tumours": 0.0,
            "scanner": run.unet.slices.scanner.model_copy(update={"sequences": sequences}),
        }
    )  # fmt: skip
    run = run.model_copy(update={"image_size": 128, "unet": run.unet.model_copy(update={"slices": slices})})
    parts = [pretraining.draw_heads(run, 72, streams.generator(seed)).images for seed in (1, 2, 3)]
    return [(images, features.effnet(images)) for images in parts]


def broken(images):
    """Name -> images in which something is wrong."""
    rng = np.random.default_rng(0)
    half = images.copy()
    half[:, :, 64:] = 0
    shuffled = images.copy().reshape(len(images), 2, 64, 2, 64)[:, ::-1][:, :, :, ::-1].reshape(images.shape)
    return {
        "half a head": half,
        "quarters swapped": np.ascontiguousarray(shuffled),
        "noise": rng.integers(0, 256, images.shape).astype(np.uint8),
        "black": np.zeros_like(images),
        "blurred": gaussian_filter(images, (0, 3, 3)),
    }


def test_other_people_are_plausible_and_broken_heads_are_not(heads):
    (_, train), (val, val_features), (test, test_features) = heads
    known = plausibility.real(val, val_features, train)
    alarms = plausibility.implausibility(test, test_features, known) > known.bound
    assert alarms.mean() <= 0.06
    for name, images in broken(test[:24]).items():
        found = plausibility.implausibility(images, features.effnet(images), known) > known.bound
        assert found.mean() >= 0.9, name


def test_what_lies_off_by_known_widths_scores_them():
    known = plausibility.Real(np.zeros((2, 2)), np.zeros(6), np.array([1, 1, 1, 1, 1, 0.5]), 3.0)
    score = plausibility.implausibility(np.zeros((2, 16, 16), np.uint8), np.array([[3.0, 4.0], [0.0, 1.5]]), known)
    np.testing.assert_allclose(score, [10, 3])
