"""A step of `fera train` with the frequency-energy consistency loss, on all of a batch and on a part, against none."""

from collections.abc import Iterator
from typing import Any

from benchmarks.race import Comparison, Race
from benchmarks.trainers import style_folder, trainer


def races(small: bool) -> Iterator[Race]:
    """The emoji base, with a quarter of each batch and with all of it."""
    size = 2 if small else 8
    variants: dict[str, dict[str, Any]] = {
        "FECL on a quarter": {"consistency_fraction": 0.25},
        "FECL on all": {},
        "without": {"consistency_weight": 0.0},
    }
    comparisons = [Comparison("FECL on a quarter", "without", 1.15), Comparison("FECL on all", "without", 1.15)]
    with style_folder(small) as folder:
        trainers = {name: trainer(folder, name, size, train) for name, train in variants.items()}
        yield Race(
            f"step of fera train, emoji base, batch {size}",
            {name: one.advance for name, one in trainers.items()},
            comparisons,
            rounds=24,
        )
