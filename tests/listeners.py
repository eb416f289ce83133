"""Listeners that tests give to long work."""

import sys
from typing import Any

from fera import training
from fera.training import Summary, TrainConfig


class Printed:
    """Prints what is said to standard error, as the command line does."""

    def say(self, message: str) -> None:
        print(message, file=sys.stderr)

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        assert 0 <= done <= total and total >= 1, (what, done, total)


def train(config: TrainConfig, **options: Any) -> Summary:
    """`fera.training.train` with what it says on standard error."""
    return training.train(config, listener=Printed(), **options)
