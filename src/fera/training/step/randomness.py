"""Randomness without a state: everything follows from the seed and from where in the run it is needed."""

import hashlib
from functools import lru_cache

import torch


def mixed_seed(*numbers: int) -> int:
    """A seed in [0, 2^63) from several numbers; neighbours give unrelated seeds."""
    text = ",".join(str(number) for number in numbers)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def is_chosen(fraction: float, number: int) -> bool:
    """Whether a number is among those that are chosen: a given fraction of all, as evenly spread as can be.

    Args:
        fraction: in (0, 1].
        number: counted from 0.
    """
    return int((number + 1) * fraction) > int(number * fraction)


def rows_at(start: int, count: int, size: int, seed: int) -> list[int]:
    """A stretch of the endless order in which a run sees its examples.

    Each epoch is a permutation of its own; epochs follow each other without a gap, so every example is seen equally
    often and every batch is full.

    Args:
        start: position of the first example, counted over the whole run.
        count: how many.
        size: number of examples.
        seed: the seed of the run.

    Returns:
        Indices of examples.
    """
    return [_permutation(size, seed, position // size)[position % size] for position in range(start, start + count)]


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(size, generator=generator).tolist()
