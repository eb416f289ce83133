"""Races: contestants take turns, so that a busy machine slows all of them alike."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.meters import SECONDS, Meter


@dataclass(frozen=True)
class Comparison:
    """One contestant's measure over another's, and what it should be.

    Args:
        contestant: whose measure.
        reference: over whose.
        at_most: the ratio to reach where less is better.
        at_least: the ratio to reach where more is better.
    """

    contestant: str
    reference: str
    at_most: float | None = None
    at_least: float | None = None

    @property
    def goal(self) -> str:
        """The ratio to reach, in words; empty where there is none."""
        if self.at_most is not None:
            return f"<= {self.at_most:g}"
        return "" if self.at_least is None else f">= {self.at_least:g}"

    def is_reached(self, ratio: float) -> bool | None:
        """Whether a ratio reaches the goal; None where there is none."""
        if self.at_most is not None:
            return ratio <= self.at_most
        return None if self.at_least is None else ratio >= self.at_least


@dataclass(frozen=True)
class Race:
    """Contestants and how they are measured.

    Args:
        case: what they do, in a few words.
        contestants: name to what is measured.
        comparisons: which ratios to show.
        rounds: how often each is measured, at least 1.
        warm_up: rounds before that.
        meter: what is measured.
    """

    case: str
    contestants: dict[str, Callable[..., Any]]
    comparisons: list[Comparison]
    rounds: int
    warm_up: int = 2
    meter: Meter = SECONDS


@dataclass(frozen=True)
class Result:
    """Measures of one contestant, a value a round.

    Args:
        values: in the order of the rounds.
    """

    values: list[float]

    @property
    def median(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.values)

    def ratios_to(self, other: "Result") -> "Result":
        """This one's measure over the other's, round by round."""
        return Result([mine / theirs for mine, theirs in zip(self.values, other.values, strict=True)])

    @property
    def spread(self) -> tuple[float, float]:
        """Tenth and ninetieth percentile of the rounds; of a single round, that one."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        tenths = statistics.quantiles(self.values, n=10, method="inclusive")
        return tenths[0], tenths[-1]


def run(race: Race, *, rounds: int | None = None, clock: Callable[[], float] = time.perf_counter) -> dict[str, Result]:
    """Measure every contestant once a round, in an order that is drawn for the round.

    What ran before leaves caches and memory behind: in a fixed order one contestant would always follow the same other.

    Args:
        race: who and what.
        rounds: in place of the race's own number, and then with one round before them.
        clock: seconds now, of the wall or of the processor.
    """
    names = list(race.contestants)
    values: dict[str, list[float]] = {name: [] for name in names}
    warm_up = race.warm_up if rounds is None else min(1, race.warm_up)
    for number in range(-warm_up, race.rounds if rounds is None else rounds):
        for name in random.Random(number).sample(names, len(names)):  # the same orders in every run
            value = race.meter.measure(race.contestants[name], clock)
            if number >= 0:
                values[name].append(value)
    return {name: Result(found) for name, found in values.items()}
