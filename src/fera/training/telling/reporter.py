"""What a run tells: its listener, log.jsonl, and trackers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from fera.support.files import os_errors
from fera.support.progress import SILENT, Listener
from fera.support.strict_json import to_json
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
