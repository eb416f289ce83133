"""Randomness without a state: everything follows from the seed and from where in the run it is needed."""

import hashlib
from functools import lru_cache

import torch


def mixed_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) from several numbers; neighbours give unrelated seeds."""
    text = ",".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def part_of(fraction: float, count: int, seed: int, forward: int) -> int:
    """How many of some samples to take so that it is a given fraction of them on average.

    Args:
        fraction: in (0, 1].
        count: of the samples.
        seed: of the run.
        forward: number of the forward, counted over the whole run.

    Returns:
        The number below or above `fraction * count`, at random; the number itself where it is whole.
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, 3, forward))
    return int(fraction * count + float(torch.rand((), generator=generator, dtype=torch.float64)))


def rows_at(start: int, count: int, size: int, seed: int) -> list[int]:
    """A stretch of the endless order in which a run sees its examples.

    Each epoch is a permutation of its own; epochs follow each other without a gap, so every example is seen equally
    often and every batch is full.

    Args:
        start: position of the first example, counted over the whole run.
        count: how many.
        size: number of examples.
        seed: of the run.

    Returns:
        Indices of examples.
    """
    return [_permutation(size, seed, position // size)[position % size] for position in range(start, start + count)]


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()
