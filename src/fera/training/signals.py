"""Ctrl-C and SIGTERM: the step in progress ends, then the run saves a checkpoint and leaves."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn


class StopRequest:
    """Whether a run was asked to stop, and by what."""

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    @property
    def words(self) -> str:
        """What happened to the run."""
        return "terminated" if self.signal == signal.SIGTERM else "interrupted"

    def leave(self) -> NoReturn:
        """End the run as its signal wants it.

        Raises:
            SystemExit: with code 0 after SIGTERM: whoever takes the machine away was obeyed, nothing went wrong.
            KeyboardInterrupt: otherwise; so also where another process of the run was asked.
        """
        if self.signal == signal.SIGTERM:
            raise SystemExit(0)
        raise KeyboardInterrupt


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Notice Ctrl-C and SIGTERM in the block instead of breaking off; a second one of the same kind breaks off."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request  # Python delivers signals to the main thread alone
        return
    # None: a handler that is not Python's, which cannot be put back.
    previous = {number: signal.getsignal(number) or signal.SIG_DFL for number in (signal.SIGINT, signal.SIGTERM)}

    def notice(number: int, _frame: object) -> None:
        request.signal = request.signal or signal.Signals(number)
        signal.signal(number, previous[signal.Signals(number)])

    for number in previous:
        signal.signal(number, notice)
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
