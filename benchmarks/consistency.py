"""Steps of `fera train` with the frequency-energy consistency loss on all batches, on every fourth, and on none."""

from collections.abc import Iterator
from functools import partial
from typing import Any

from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.trainers import style_folder, trainer
from fera.training.trainer import Trainer


def races(setting: Setting) -> Iterator[Race]:
    """The emoji base, with every fourth batch and with all."""
    size = 2 if setting.small else 8
    variants: dict[str, dict[str, Any]] = {
        "FECL on every 4th": {"consistency_weight": 0.1, "consistency_fraction": 0.25},
        "FECL on all": {"consistency_weight": 0.1},
        "without": {},
    }
    comparisons = [Comparison("FECL on every 4th", "without", 1.15), Comparison("FECL on all", "without", 1.15)]
    with style_folder(setting.small) as folder:
        trainers = {name: trainer(setting, folder, name, size, train) for name, train in variants.items()}
        yield Race(
            f"four steps of fera train, emoji base, batch {size}",
            {name: partial(_steps, one) for name, one in trainers.items()},
            comparisons,
            rounds=8,
        )


def _steps(one: Trainer) -> None:
    """As many as hold one step of the fourths."""
    for _ in range(4):
        one.advance()
