"""Progress bars and lines in a terminal: the listener that commands give to the library."""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

# Seconds between lines where there is no terminal to draw a bar on.
_QUIET_SECONDS = 30.0


class Terminal:
    """A `Listener` that prints to standard error: a bar for each kind of work, messages above the bars.

    Use it as a context manager: the bars go away at its end.

    Args:
        messages: print messages too, not only progress.
    """

    def __init__(self, *, messages: bool = True) -> None:
        self._messages = messages
        self._console = Console(stderr=True, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}", markup=False),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, TaskID] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress.live.is_started:  # else it would print an empty line
            self._progress.stop()

    def say(self, message: str) -> None:
        """Print a line."""
        if self._messages:
            self._print(message)

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Move the bar of one kind of work; it goes away when all is done."""
        # Started late, so that nothing is drawn where nothing is under way; starting twice does nothing.
        self._progress.start()
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done, details=details)
        self._progress.update(self._tasks[what], completed=done, total=total, details=details)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(what))
        if not self._console.is_terminal and time.monotonic() - self._last_line > _QUIET_SECONDS:
            self._last_line = time.monotonic()
            self._print(f"{what} {done}/{total} {details}")

    def _print(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)
