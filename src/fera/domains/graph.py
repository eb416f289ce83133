"""The graph of domains: distances between folders of pictures."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class DomainGraph:
    """Domains with a distance between any two.

    Args:
        names: names of the domains, at least two.
        target: the place of the target among them.
        distances: symmetric, at least 0, 0 on the diagonal; a row and a column for each domain.
        measure: what the distances are of, in words.
    """

    names: tuple[str, ...]
    target: int
    distances: tuple[tuple[float, ...], ...]
    measure: str

    @property
    def sources(self) -> list[int]:
        """Places of all others than the target, in the given order."""
        return [place for place in range(len(self.names)) if place != self.target]

    def length(self, order: Sequence[int]) -> float:
        """Length of a way through domains: the sum of the distances between neighbours on it."""
        return sum(self.distances[one][next_] for one, next_ in zip(order, order[1:], strict=False))

    def named(self, order: Sequence[int]) -> list[str]:
        """The names of domains."""
        return [self.names[place] for place in order]
