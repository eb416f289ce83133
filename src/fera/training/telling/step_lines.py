"""What is told of the steps: a line of the log every few of them, the bar, and a router that collapses."""

from collections.abc import Mapping, Sequence
from typing import Any

from fera.config import OptimizationConfig
from fera.training.progress import Progress
from fera.training.telling.metrics import Metrics, collapse, in_words
from fera.training.telling.reporter import Reporter


class StepLines:
    """Reports steps, one after the other.

    Args:
        settings: of the run.
        reporter: told.
        optimizer: of the run, for what it estimates by itself.
        text_groups: parameter groups of the text encoders; they follow those of the denoiser.
    """

    def __init__(
        self,
        settings: OptimizationConfig,
        reporter: Reporter,
        optimizer: Any,
        text_groups: Sequence[Mapping[str, Any]],
    ) -> None:
        self._settings = settings
        self._reporter = reporter
        self._optimizer = optimizer
        self._text_groups = text_groups
        self._words = ""
        self._collapse_was_said = False

    def report(self, progress: Progress, rates: Sequence[float]) -> None:
        """Report the step that was just taken; where a line is due, what was counted for it begins anew.

        Args:
            progress: of the run.
            rates: learning rates that the step was taken with, one a parameter group.
        """
        if progress.step % self._settings.logging_steps == 0 or progress.step == self._settings.steps:
            self._write(progress, rates)
            progress.training_seconds += progress.window_seconds
            progress.metrics, progress.window_seconds = Metrics(), 0.0
        self._reporter.advance("training", progress.step, self._settings.steps, self._words)

    def _write(self, progress: Progress, rates: Sequence[float]) -> None:
        speed = progress.metrics.samples / max(progress.window_seconds, 1e-9)
        averages = progress.metrics.averages()
        record = {"step": progress.step, **averages, **self._learning(rates, is_routed="gates" in averages)}
        record["samples_per_second"] = round(speed, 3)
        self._reporter.write(record, progress.metrics.distributions())
        self._words = in_words(averages, speed)
        if (line := collapse(averages)) and not self._collapse_was_said:
            self._collapse_was_said = True
            self._reporter.say(f"step {progress.step}: {line}")

    def _learning(self, rates: Sequence[float], *, is_routed: bool) -> dict[str, float]:
        """Learning rates of the parts that learn."""
        rounded = [float(f"{rate:.6g}") for rate in rates]
        record = {"lr": rounded[0]}
        if is_routed:
            record["router_lr"] = rounded[2]
        for group, rate in zip(self._text_groups, rounded[3:], strict=False):
            trains = any(parameter.requires_grad for parameter in group["params"])
            record[f"{group['name']}_lr"] = rate if trains else 0.0
        if (factor := self._optimizer.param_groups[0].get("d")) is not None:
            record["d"] = float(f"{factor:.6g}")  # Prodigy's estimate, which multiplies the rate
        return record
