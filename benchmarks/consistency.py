"""A step of `fera train` with the frequency-energy consistency loss, against the same without."""

from collections.abc import Iterator
from typing import Any

from benchmarks.race import Comparison, Race
from benchmarks.trainers import style_folder, trainer
from fera.training.config import OptimizationConfig


def races(small: bool) -> Iterator[Race]:
    """The emoji base; the base predicts the part of the batch that `fera train` lets it, and all of it."""
    size = 2 if small else 8
    variants: dict[str, dict[str, Any]] = {"with FECL": {}, "without": {"consistency_weight": 0.0}}
    comparisons = [Comparison("with FECL", "without", 1.15)]
    if "consistency_fraction" in OptimizationConfig.model_fields:
        variants["with FECL on all"] = {"consistency_fraction": 1.0}
        comparisons.append(Comparison("with FECL on all", "without"))
    with style_folder(small) as folder:
        trainers = {name: trainer(folder, name, size, train) for name, train in variants.items()}
        yield Race(
            f"step of fera train, emoji base, batch {size}",
            {name: one.advance for name, one in trainers.items()},
            comparisons,
            rounds=24,
        )
