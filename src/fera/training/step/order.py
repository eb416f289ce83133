"""Which examples a forward sees. The order follows from the seed alone, so that a run can go on anywhere in it."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import torch

from fera.config import TrainConfig
from fera.data.buckets import Size
from fera.training.step.randomness import mixed_seed, rows_at


class Order(Protocol):
    """An endless order of batches. `place` counts the batches of a run, over all processes, from 0."""

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""


def order_of(sizes: Sequence[Size], config: TrainConfig) -> Order:
    """The order in which a run sees its examples, whose sizes are given."""
    if config.data.enable_bucket:
        return Bucketed(sizes, config.train.batch_size, config.seed)
    return Stream(len(sizes), config.train.batch_size, config.seed)


class Stream:
    """Full batches across the ends of epochs, for examples of one size: an epoch may end in the midst of a batch.

    Args:
        examples: how many.
        batch_size: of them in a batch.
        seed: of the run.
    """

    def __init__(self, examples: int, batch_size: int, seed: int) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""
        return rows_at(place * self._batch_size, self._batch_size, self._examples, self._seed)

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""
        return place * self._batch_size


class Bucketed:
    """Batches of one size each. Every epoch shuffles within the sizes, and the batches of all sizes among each other.

    Each example is seen once an epoch: what does not fill a batch is a smaller one, whose loss counts less.

    Args:
        sizes: of each example.
        batch_size: most examples in a batch.
        seed: of the run.
    """

    def __init__(self, sizes: Sequence[Size], batch_size: int, seed: int) -> None:
        self._sizes = sizes
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._shuffled)
        self._batches = len(self._epoch(0))

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""
        return self._epoch(place // self._batches)[place % self._batches]

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""
        epoch, batch = divmod(place, self._batches)
        return epoch * len(self._sizes) + sum(len(rows) for rows in self._epoch(epoch)[:batch])

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """Batches of one epoch."""
        generator = torch.Generator().manual_seed(mixed_seed(self._seed, epoch))
        buckets: dict[Size, list[int]] = {}
        for row in torch.randperm(len(self._sizes), generator=generator).tolist():
            buckets.setdefault(self._sizes[row], []).append(row)
        batches = [
            rows[start : start + self._batch_size]
            for _, rows in sorted(buckets.items())
            for start in range(0, len(rows), self._batch_size)
        ]
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
