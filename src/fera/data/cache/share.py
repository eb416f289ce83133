"""Which part of what is missing a process encodes, where several fill one cache."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass


def _go_on() -> None:
    """Nobody else to wait for."""


@dataclass(frozen=True)
class Share:
    """One of several parts of a cache.

    An entry's part follows from its name alone: parts do not overlap, whatever the cache holds already and whenever
    each of them looks.

    Args:
        number: which, from 0.
        count: of how many.
        wait: waits for the other processes of a launch; they all call it as often.
        has_others: whether those others fill the parts that this one does not: after `wait` the cache is full then.
        leads: whether it goes first among the processes of its launch.
    """

    number: int = 0
    count: int = 1
    wait: Callable[[], None] = _go_on
    has_others: bool = False
    leads: bool = True

    @contextmanager
    def in_turn(self) -> Iterator[None]:
        """What the leading process does before the others do it; all of them come here."""
        if not self.leads:
            self.wait()
        yield
        if self.leads:
            self.wait()

    def holds(self, name: str) -> bool:
        """Whether an entry of this name, which ends in a hash, belongs to this part."""
        return self.count == 1 or int(name[-8:], 16) % self.count == self.number


ALONE = Share()
