"""Which examples a forward sees. The order follows from the seed alone, so that a run can go on anywhere in it."""

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import Protocol

import torch

from fera.config import TrainConfig
from fera.training.step.randomness import mixed_seed, rows_at


class Turns:
    """Which examples an epoch sees, where lists of different lengths are seen equally often.

    Every list has as many slots in an epoch as the longest one has examples. A shorter list goes round: an epoch begins
    where the one before it has stopped. So over any epochs from the first, examples of one list differ by one look at
    most.

    Examples are numbered over all lists, each of which is as long as the longest one: those beyond its own length are
    never named. That is how `fera.training.start.class_pictures.mixed` lays them out.

    Args:
        lengths: the lengths of the lists, each at least 1; a single list is seen once an epoch.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self._lengths = tuple(lengths)
        self._longest = max(lengths)

    @property
    def slots(self) -> int:
        """Examples that an epoch sees."""
        return self._longest * len(self._lengths)

    @property
    def period(self) -> int:
        """Epochs after which the same examples are seen again."""
        return math.lcm(*(length // math.gcd(length, self._longest) for length in self._lengths))

    def row(self, epoch: int, slot: int) -> int:
        """The example in a slot of an epoch, both counted from 0."""
        which, place = divmod(slot, self._longest)
        return which * self._longest + (epoch * self._longest + place) % self._lengths[which]


class Order(Protocol):
    """An endless order of batches. `place` counts the batches of a run, over all processes, from 0."""

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""

    def place_after(self, samples: int) -> int:
        """The first batch before which there are so many examples, or more."""


def order_of(
    groups: Sequence[Hashable], config: TrainConfig, lengths: Sequence[int] = (), *, seed: int | None = None
) -> Order:
    """The order in which a run sees its examples.

    Args:
        groups: of each example, what those of one batch share.
        config: the configuration of the run.
        lengths: the lengths of the lists that examples are of, as `Turns` takes them; one list when left out.
        seed: in the place of the run's.
    """
    turns = Turns(lengths or [len(groups)])
    seed = config.seed if seed is None else seed
    if config.data.enable_bucket or len(set(groups)) > 1:
        return Bucketed(groups, config.train.batch_size, seed, turns)
    return Stream(len(groups), config.train.batch_size, seed, turns)


class Stream:
    """Full batches across the ends of epochs, for examples of one size: an epoch may end in the midst of a batch.

    Args:
        examples: how many.
        batch_size: the batch size of them in a batch.
        seed: the seed of the run.
        turns: which examples an epoch sees; each once when left out.
    """

    def __init__(self, examples: int, batch_size: int, seed: int, turns: Turns | None = None) -> None:
        self._examples = examples
        self._batch_size = batch_size
        self._seed = seed
        self._turns = turns or Turns([examples])

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""
        start = place * self._batch_size
        slots = rows_at(start, self._batch_size, self._examples, self._seed)
        return [self._turns.row(position // self._examples, slot) for position, slot in enumerate(slots, start)]

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""
        return place * self._batch_size

    def place_after(self, samples: int) -> int:
        """The first batch before which there are so many examples, or more."""
        return math.ceil(samples / self._batch_size)


class Bucketed:
    """Batches of one size each. Every epoch shuffles within the sizes, and the batches of all sizes among each other.

    Each example is seen once an epoch, or as often as its turn comes. What does not fill a batch is a smaller one,
    whose loss counts less.

    Args:
        sizes: the sizes of each example.
        batch_size: most examples in a batch.
        seed: the seed of the run.
        turns: which examples an epoch sees; each once when left out.
    """

    def __init__(self, sizes: Sequence[Hashable], batch_size: int, seed: int, turns: Turns | None = None) -> None:
        self._sizes = sizes
        self._batch_size = batch_size
        self._seed = seed
        self._turns = turns or Turns([len(sizes)])
        self._epoch = lru_cache(maxsize=2)(self._shuffled)
        self._batches_of = lru_cache(maxsize=None)(self._count_batches)
        self._starts = [0]  # first batch of each epoch, as far as they were asked for

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""
        epoch, batch = self._locate(place)
        return self._epoch(epoch)[batch]

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""
        epoch, batch = self._locate(place)
        return epoch * len(self._sizes) + sum(len(rows) for rows in self._epoch(epoch)[:batch])

    def place_after(self, samples: int) -> int:
        """The first batch before which there are so many examples, or more."""
        epoch, rest = divmod(samples, len(self._sizes))
        place = self._start(epoch)
        for rows in self._epoch(epoch):
            if rest <= 0:
                break
            place, rest = place + 1, rest - len(rows)
        return place

    def _locate(self, place: int) -> tuple[int, int]:
        """Epoch of a batch, and its number in it."""
        while self._starts[-1] <= place:
            self._start(len(self._starts))
        epoch = bisect_right(self._starts, place) - 1
        return epoch, place - self._starts[epoch]

    def _start(self, epoch: int) -> int:
        """First batch of an epoch."""
        while len(self._starts) <= epoch:
            self._starts.append(self._starts[-1] + self._batches_of((len(self._starts) - 1) % self._turns.period))
        return self._starts[epoch]

    def _count_batches(self, epoch: int) -> int:
        sizes = Counter(self._sizes[self._turns.row(epoch, slot)] for slot in range(len(self._sizes)))
        return sum(math.ceil(count / self._batch_size) for count in sizes.values())

    def _shuffled(self, epoch: int) -> list[list[int]]:
        """Batches of one epoch."""
        generator = torch.Generator().manual_seed(mixed_seed(self._seed, epoch))
        buckets: dict[Hashable, list[int]] = {}
        for slot in torch.randperm(len(self._sizes), generator=generator).tolist():
            row = self._turns.row(epoch, slot)
            buckets.setdefault(self._sizes[row], []).append(row)
        batches = [
            rows[start : start + self._batch_size]
            for _, rows in sorted(buckets.items())
            for start in range(0, len(rows), self._batch_size)
        ]
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]
