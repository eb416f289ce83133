"""Two lists of examples that an epoch sees equally often, such as a subject's pictures and class pictures."""

import math
from collections.abc import Sequence


class Turns:
    """Which examples an epoch sees, where lists of different lengths are seen equally often.

    Every list has as many slots in an epoch as the longest one has examples. A shorter list goes round: an epoch begins
    where the one before it has stopped. So over any epochs from the first, examples of one list differ by one look at
    most.

    Examples are numbered over all lists, each of which is as long as the longest one: those beyond its own length are
    never named. That is how `fera.training.start.class_pictures.mixed` lays them out.

    Args:
        lengths: of the lists, each at least 1; a single list is seen once an epoch.
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
