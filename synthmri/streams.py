"""Random streams: for every purpose of one seed an independent one, by hash (numpy's SeedSequence).

Arithmetic on seeds (seed + 1 for this, seed + 2 for that) makes one seed's first purpose another's second.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def sequence(seed: int, *purpose: str | int) -> np.random.SeedSequence:
    """The source of one purpose, named by words and numbers such as "finetune", "step", 17."""
    key = tuple(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in purpose)
    return np.random.SeedSequence(seed, spawn_key=key)


def number(seed: int, *purpose: str | int) -> int:
    """A whole number below 2^32 of one purpose: the seed of what takes one."""
    return int(sequence(seed, *purpose).generate_state(1)[0])


def generator(seed: int, *purpose: str | int) -> torch.Generator:
    """torch's generator of one purpose, on the CPU: what is random about step n comes from (seed, ..., n) alone, so a
    training that was stopped goes on as if it never was."""
    return torch.Generator().manual_seed(number(seed, *purpose))


def of_image(seed: int) -> torch.Generator:
    """torch's generator of one image, on the CPU, where it heeds the lowest 32 bits of a seed alone: one from 2^32 on
    is hashed, so that it is another image than that of the same lowest bits."""
    return torch.Generator().manual_seed(seed if seed < 2**32 else number(seed, "image"))


@contextmanager
def weights(seed: int, *purpose: str | int) -> Iterator[None]:
    """Within it, torch draws the initial weights of networks from the stream of one purpose; afterwards as before."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(number(seed, *purpose))
        yield
