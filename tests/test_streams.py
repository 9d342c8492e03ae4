"""Random streams of one seed: each purpose its own, and none of another seed's."""

import numpy as np
import torch

from synthmri import streams


def first(*purpose) -> int:
    return int(torch.randint(2**62, (1,), generator=streams.generator(*purpose)))


def test_a_stream_is_its_seed_and_purpose():
    assert first(0, "train", "step", 5) == first(0, "train", "step", 5)
    torch.manual_seed(7)
    with streams.weights(3, "net"):
        drawn = torch.rand(4)
    torch.manual_seed(8)
    with streams.weights(3, "net"):
        assert torch.equal(torch.rand(4), drawn)
    outside = torch.rand(1)
    torch.manual_seed(8)
    assert torch.equal(torch.rand(1), outside)  # nothing outside has moved


def test_no_purpose_shares_its_numbers_with_another():
    """By arithmetic on seeds, (seed, step 1) of one purpose was (seed + 1, step 0) of another."""
    seen = [
        first(seed, purpose, step)
        for seed in range(8)
        for purpose in ("order", "step", "weights")
        for step in range(300)
    ]
    assert len(set(seen)) == len(seen)


def test_streams_are_not_alike():
    draws = np.stack([torch.randn(500, generator=streams.generator(0, "step", i)).numpy() for i in range(100)])
    off_diagonal = np.corrcoef(draws)[~np.eye(100, dtype=bool)]
    assert abs(off_diagonal.mean()) < 0.005 and abs(off_diagonal).max() < 0.25
