"""What races came to: rows for people, values for programs."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.race import Comparison, Race, Result

HEADINGS = ("contestant", "median", "against", "median", "ratio", "10..90 %", "goal", "")


@dataclass(frozen=True)
class Finding:
    """A race and what was measured.

    Args:
        benchmark: name of the benchmark that it belongs to.
        race: who and what.
        results: by contestant.
    """

    benchmark: str
    race: Race
    results: dict[str, Result]

    def ratio(self, comparison: Comparison) -> Result:
        """Ratios of a comparison, a value a round."""
        return self.results[comparison.contestant].ratios_to(self.results[comparison.reference])

    def rows(self) -> list[tuple[str, ...]]:
        """A row of texts for each comparison, as in `HEADINGS`."""
        rows = []
        for comparison in self.race.comparisons:
            ratio = self.ratio(comparison)
            low, high = ratio.spread
            medians = [
                self.race.meter.shown(self.results[name].median)
                for name in (comparison.contestant, comparison.reference)
            ]
            reached = comparison.is_reached(ratio.median)
            rows.append(
                (
                    comparison.contestant,
                    medians[0],
                    comparison.reference,
                    medians[1],
                    _digits(ratio.median),
                    f"{_digits(low)} .. {_digits(high)}",
                    comparison.goal,
                    "" if reached is None else "reached" if reached else "missed",
                )
            )
        return rows

    def record(self) -> dict[str, Any]:
        """Everything as JSON takes it: values as measured, in seconds, bytes or samples per second."""
        return {
            "benchmark": self.benchmark,
            "case": self.race.case,
            "shown_in": self.race.meter.unit,
            "values": {name: result.values for name, result in self.results.items()},
            "comparisons": [
                {
                    "contestant": comparison.contestant,
                    "reference": comparison.reference,
                    "ratio": self.ratio(comparison).median,
                    "spread": list(self.ratio(comparison).spread),
                    "goal": comparison.goal,
                    "reached": comparison.is_reached(self.ratio(comparison).median),
                }
                for comparison in self.race.comparisons
            ],
        }


def table(finding: Finding) -> Table:
    """A race's rows for a terminal."""
    view = Table(title=finding.race.case, title_justify="left")
    for heading in HEADINGS:
        view.add_column(heading, justify="left" if heading in ("contestant", "against", "") else "right")
    for row in finding.rows():
        view.add_row(*row)
    return view


def markdown(findings: Iterable[Finding]) -> str:
    """All races' rows as a table for docs/performance.md: ratios alone, for times belong to a machine."""
    lines = ["| work | of | against | ratio | 10..90 % | goal | |", "|---|---|---|---|---|---|---|"]
    for finding in findings:
        for contestant, _, reference, _, ratio, spread, goal, verdict in finding.rows():
            cells = (finding.race.case, contestant, reference, ratio, spread, goal, verdict)
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _digits(ratio: float) -> str:
    """A ratio in three decimals, or in two digits where that would leave none."""
    return f"{ratio:.3f}" if ratio >= 0.01 else f"{ratio:.2g}"
