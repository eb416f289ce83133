"""What a run tells its listener, log.jsonl and trackers: of itself, and of its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fera.config import OptimizationConfig
from fera.support.files import os_errors
from fera.support.progress import SILENT, Listener
from fera.support.strict_json import to_json
from fera.training.progress import Progress
from fera.training.telling.metrics import Metrics, collapse, in_words
from fera.training.telling.tracking import Trackers


class Reporter:
    """Listener, log and trackers of a run; silent on all processes but the main one.

    It is a `Listener` itself. As a context manager it finishes the trackers at its end.

    Args:
        log: path of log.jsonl.
        is_main: whether this is the main process.
        listener: hears messages and progress.
    """

    def __init__(self, log: Path, *, is_main: bool, listener: Listener = SILENT) -> None:
        self._log = log
        self._is_main = is_main
        self._listener = listener if is_main else SILENT
        self._trackers: Trackers | None = None

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *exception: object) -> None:
        if self._trackers is not None:
            self._trackers.finish()

    def track(self, trackers: Trackers) -> None:
        """Send to trackers too, from now on, what is written; they are finished with the reporter."""
        self._trackers = trackers

    def say(self, message: str) -> None:
        """Hand a line on to the listener."""
        self._listener.say(message)

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Hand progress on to the listener."""
        self._listener.advance(what, done, total, details)

    def write(self, record: dict[str, Any], distributions: Mapping[str, Tensor] | None = None) -> None:
        """Append a line to log.jsonl, and send it to the trackers.

        Args:
            record: the line; has a "step".
            distributions: what the trackers get besides, as `Metrics.distributions` gives it.
        """
        if self._is_main:
            with os_errors(self._log), self._log.open("a", encoding="utf-8") as file:
                file.write(to_json(record) + "\n")
        if self._trackers is not None:
            self._trackers.log(record, distributions or {})

    def show(self, step: int, prompts: Sequence[str], images: Sequence[Image.Image]) -> None:
        """Send pictures to the trackers, one a prompt."""
        if self._trackers is not None:
            self._trackers.show(step, prompts, images)


class StepLines:
    """Reports steps, one after the other.

    Args:
        settings: the settings of the run.
        reporter: told.
        optimizer: the optimizer of the run, for what it estimates by itself.
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
            progress: the progress of the run.
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
