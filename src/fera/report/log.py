"""What log.jsonl says, as series; half-written and foreign lines are counted, not fatal."""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fera.report.scales import Point

# Lines of the log whose gates by noise are shown together: one alone has few samples a noise level.
NOISE_LINES = 20


@dataclass(frozen=True)
class Log:
    """The lines of log.jsonl.

    Args:
        records: those that could be read and have a step, in the order of their steps.
        bad_lines: how many could not.
    """

    records: list[dict[str, Any]]
    bad_lines: int = 0

    @property
    def last_step(self) -> int:
        """The last step that was logged; 0 for an empty log."""
        return max((record["step"] for record in self.records), default=0)

    @property
    def num_experts(self) -> int:
        """How many experts the gates have; 0 for a run without a gate."""
        return max((len(gates) for record in self.records if isinstance(gates := record.get("gates"), list)), default=0)

    def series(self, key: str) -> list[Point]:
        """Steps and values of a key, over the lines that have it; None where the value is no finite number."""
        return [(record["step"], number(record[key])) for record in self.records if key in record]

    def gate_series(self) -> list[list[Point]]:
        """Steps and mean gate of each expert."""
        return self._by_expert("gates")

    def band_series(self) -> list[list[Point]]:
        """Steps and mean share of the energy of each band, low to high frequency."""
        return self._by_expert("bands")

    def by_noise(self, key: str, last: int = NOISE_LINES) -> list[tuple[float, list[float]]]:
        """Means by noise level over the last lines.

        Args:
            key: "gates_by_noise" or "bands_by_noise".
            last: how many of the lines that have it.

        Returns:
            Noise levels, from 1 (pure noise) down as denoising goes, with the mean of each entry there.
        """
        lines = [record[key] for record in self.records if isinstance(record.get(key), list)][-last:]
        parts = max(map(len, lines), default=0)
        found = []
        for part in reversed(range(parts)):
            rows = [line[part] for line in lines if part < len(line) and isinstance(line[part], list)]
            numbers = [[value for entry in row if (value := number(entry)) is not None] for row in rows]
            width = max(map(len, numbers), default=0)
            if whole := [row for row in numbers if len(row) == width and width]:
                found.append(((part + 0.5) / parts, [sum(column) / len(whole) for column in zip(*whole, strict=True)]))
        return found

    def update_series(self) -> list[list[Point]]:
        """Steps and the share of the updates that each expert had; none where updates were not routed."""
        return self._by_expert("updates")

    def _by_expert(self, key: str) -> list[list[Point]]:
        rows = [(record["step"], record[key]) for record in self.records if isinstance(record.get(key), list)]
        count = max((len(row) for _, row in rows), default=0)
        return [[(step, number(row[e]) if e < len(row) else None) for step, row in rows] for e in range(count)]


def read_log(path: Path) -> Log:
    """Read a run's log.

    Args:
        path: the path of log.jsonl.

    Raises:
        OSError: it cannot be read.
    """
    records, bad = [], 0
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict) and _is_step(record.get("step")):
            records.append(record)
        else:
            bad += 1
    return Log(sorted(records, key=lambda record: record["step"]), bad)


def number(value: object) -> float | None:
    """A finite number as float; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        converted = float(value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return converted if math.isfinite(converted) else None


def _is_step(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53
