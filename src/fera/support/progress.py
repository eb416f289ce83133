"""Who hears what long work says and how far it is.

Library code takes a `Listener` and never prints. The command line passes one that draws bars; a page or a script of
your own passes another:

    class Printer:
        def say(self, message):
            print(message)

        def advance(self, what, done, total, details=""):
            print(f"{what}: {done} of {total} {details}")

    fera.training.train(config, listener=Printer())
"""

from typing import Protocol


class Listener(Protocol):
    """What `fera.training.train` and other long work calls, in the thread that does the work."""

    def say(self, message: str) -> None:
        """Hear a line of plain text: what was found, decided or done.

        Args:
            message: one line, without a line break at its end.
        """

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Hear how far one kind of work is.

        Args:
            what: the work, such as "drawing"; several kinds may be under way at once.
            done: how much of it is done, from 0 to `total`; the work is over at `total`.
            total: all of it, at least 1.
            details: more to show beside it, such as the loss.
        """


class Silent:
    """A listener that hears nothing, which is what library functions take when none is given."""

    def say(self, message: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Nothing."""


class ProgressOnly:
    """A listener that hands progress on to another, and no messages."""

    def __init__(self, listener: Listener) -> None:
        self._listener = listener

    def say(self, message: str) -> None:
        """Nothing."""

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Hand it on."""
        self._listener.advance(what, done, total, details)


SILENT = Silent()
