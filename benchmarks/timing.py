"""Races: contestants take turns, so that a busy machine slows all of them alike."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Result:
    """Seconds of one contestant, a value a round.

    Args:
        seconds: in the order of the rounds.
    """

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the rounds, seconds."""
        return statistics.median(self.seconds)

    @property
    def least(self) -> float:
        """Fastest round, seconds: what it takes when nothing else runs."""
        return min(self.seconds)

    @property
    def spread(self) -> tuple[float, float]:
        """Tenth and ninetieth percentile, seconds."""
        tenths = statistics.quantiles(self.seconds, n=10, method="inclusive")
        return tenths[0], tenths[-1]

    def ratio_to(self, other: "Result") -> float:
        """Median over the rounds of this one's time over the other's in the same round."""
        return statistics.median(mine / theirs for mine, theirs in zip(self.seconds, other.seconds, strict=True))


def race(
    contestants: dict[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 2,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Result]:
    """Time contestants in turn, A B C, B C A, C A B, and so on.

    Args:
        contestants: name to what is timed.
        rounds: how often each is timed, at least 2.
        warm_up: rounds before the clock runs.
        clock: seconds now, of the wall or of the processor.
    """
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_up, rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            start = clock()
            contestants[name]()
            elapsed = clock() - start
            if number >= 0:
                seconds[name].append(elapsed)
    return {name: Result(values) for name, values in seconds.items()}
