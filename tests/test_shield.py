"""Copies and broken heads are drawn again, from the next seed; what never passes is left out."""

import numpy as np
import pytest
import torch

from synthmri.evaluation import features, plausibility, shield
from synthmri.training import sampling


@pytest.fixture
def world(monkeypatch):
    """Training slices of random blocks; features that are the mean and the deviation of grey levels."""
    rng = np.random.default_rng(0)

    def slices(n):
        blocks = np.kron(rng.normal(size=(n, 8, 8)), np.ones((8, 8))) * 40 + 128
        return (blocks + rng.normal(size=blocks.shape)).clip(30, 255).astype(np.uint8)

    def extract(name, images, **settings):
        return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)

    monkeypatch.setattr(features, "extract", extract)
    train, val = slices(30), slices(60)
    return slices, train, shield.known(train, val, extract("", train), extract("", val))


def test_copies_and_broken_heads_are_drawn_again(world):
    slices, train, known = world
    other, seen = slices(400), []

    def sample(which, seeds):
        seen.append((list(which), list(seeds)))
        attempt = len(seen) - 1
        made = other[np.array(which) + 40 * attempt].copy()
        if attempt == 0:
            made[0], made[1] = train[3], train[4][:, ::-1]  # a copy, and a mirrored one
            made[2] = 0  # no head
        return made

    made = shield.draw(sample, list(range(100, 140)), known)
    assert seen[0] == (list(range(40)), list(range(100, 140)))
    again, seeds = seen[1]
    assert {0, 1, 2} <= set(again) and seeds == [100 + i + shield.AGAIN for i in again]
    assert len(again) < 15  # honest ones pass but for about one in twenty, each way
    assert list(made.asked) == list(range(40)) and list(made.seeds[:3]) != [100, 101, 102]
    assert made.drawn == sum(len(which) for which, _ in seen) and made.alike >= 2 and made.implausible >= 1
    assert (made.likeness <= known.most_alike).all()
    off = plausibility.implausibility(made.images, features.extract("", made.images), known.real)
    assert (off <= known.real.bound).all()


@pytest.mark.parametrize("seed", [0, 1_000_000, 2**40])
def test_what_is_drawn_again_is_another_image(seed):
    """torch's generator on a processor heeds the lowest 32 bits of a seed alone."""
    p = sampling.Sample(n=1, seed=0, steps=1, guidance_scale=1.0, scheduler="ddpm", batch_size=4)

    def draw(generators):
        return torch.stack([torch.rand((1, 4, 4), generator=generator) for generator in generators])

    seeds = [seed + attempt * shield.AGAIN for attempt in range(shield.ATTEMPTS)]
    images = sampling.in_batches(draw, seeds, p.batch_size, torch.device("cpu"), "fp32")
    assert len({image.tobytes() for image in images}) == shield.ATTEMPTS


def test_what_never_passes_is_left_out(world):
    slices, train, known = world
    good = slices(1)[0]

    def sample(which, seeds):
        return np.stack([train[i] if i == 1 else good for i in which])

    made = shield.draw(sample, [5, 6, 7], known)
    assert 1 not in made.asked and made.alike >= shield.ATTEMPTS
    nothing = shield.draw(lambda which, seeds: train[which], [5, 6], known)
    assert nothing.images.shape == (0, 64, 64) and nothing.drawn == 2 * shield.ATTEMPTS


def test_an_image_does_not_depend_on_its_company(world):
    slices, train, known = world

    def sample(which, seeds):
        return np.stack([
            train[seed % 30] if seed % 3 == 0 else slices_of(seed) for seed in seeds
        ])  # fmt: skip

    def slices_of(seed):
        blocks = np.kron(np.random.default_rng(seed).normal(size=(8, 8)), np.ones((8, 8))) * 40 + 128
        return blocks.clip(30, 255).astype(np.uint8)

    whole = shield.draw(sample, [3, 4, 5, 6], known)
    for i, seed in enumerate([3, 4, 5, 6]):
        alone = shield.draw(sample, [seed], known)
        np.testing.assert_array_equal(alone.seeds, whole.seeds[whole.asked == i])
