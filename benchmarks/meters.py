"""What is measured of a piece of work: its time, its speed, its memory, or what it says of itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.allocations import peak_allocated

Clock = Callable[[], float]

# Work that is shorter is repeated: a single call of it would be lost in the clock's and the machine's noise.
_LEAST_SECONDS = 0.02


@dataclass(frozen=True)
class Meter:
    """A measure of a piece of work.

    Args:
        measure: takes the work and a clock, does the work, and returns the measure.
        unit: in which the measure is shown.
        factor: from the measure to that unit.
    """

    measure: Callable[[Callable[..., Any], Clock], float]
    unit: str
    factor: float = 1.0

    def shown(self, value: float) -> str:
        """A measure with its unit, in three digits."""
        value *= self.factor
        digits = 0 if value >= 100 else 1 if value >= 10 else 2
        return f"{value:,.{digits}f} {self.unit}"


def _seconds(work: Callable[[], object], clock: Clock) -> float:
    wait()
    calls, start, elapsed = 0, clock(), 0.0
    while elapsed < _LEAST_SECONDS:
        work()
        calls += 1
        wait()
        elapsed = clock() - start
    return elapsed / calls


def wait() -> None:
    """Let a GPU that is in use finish what it was given: calls return before it has."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


SECONDS = Meter(_seconds, "ms", 1000)
"""Seconds of one call."""


def peak_bytes(device: torch.device) -> Meter:
    """Most bytes of a device's memory that one call holds at a time beyond what was there before it."""
    return Meter(lambda work, clock: float(peak_allocated(work, device)), "MB", 1e-6)


REPORTED_SECONDS = Meter(lambda work, clock: float(work(clock)), "ms", 1000)
"""Seconds that the work reports; it is given the clock."""

REPORTED_SPEED = Meter(lambda work, clock: float(work()), "samples/s")
"""Samples per second that the work reports."""


def speed(samples: int) -> Meter:
    """Samples per second of one call that works through so many."""
    return Meter(lambda work, clock: samples / _seconds(work, clock), "samples/s")
