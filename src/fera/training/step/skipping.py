"""Steps whose loss or gradient is not finite: left out, counted, and too many in a row end the run.

Such a step takes its place in the order of the data and in the count of steps, and nothing else: weights, optimizer and
schedule stay as they are.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from fera.data.example import some_of


@dataclass(frozen=True)
class Fault:
    """What makes a step unusable.

    Args:
        what: is not finite.
        names: the names of the samples whose loss it is; of all samples of the step where it is the gradient.
    """

    what: Literal["loss", "gradient"]
    names: list[str]

    def __str__(self) -> str:
        return f"the {self.what} is not finite"

    @property
    def on(self) -> str:
        """Its samples, for a message."""
        return f" on {some_of(list(dict.fromkeys(self.names)))}" if self.names else ""


@dataclass
class Skips:
    """How many steps were left out.

    Args:
        total: the total of the run.
        in_a_row: up to now.
        names: the names of the samples of those in a row, each once.
    """

    total: int = 0
    in_a_row: int = 0
    names: list[str] | None = None

    def count(self, fault: Fault | None) -> None:
        """Count a step, skipped where there is a fault."""
        if fault is None:
            self.in_a_row, self.names = 0, None
            return
        self.total += 1
        self.in_a_row += 1
        self.names = list(dict.fromkeys([*(self.names or ()), *fault.names]))

    def describe(self, fault: Fault, step: int) -> str:
        """Why a run ends with a skipped step, and on which samples."""
        before = f", as in the {self.in_a_row - 1} steps before, which were skipped" if self.in_a_row > 1 else ""
        return f"{fault} at step {step}{Fault(fault.what, self.names or []).on}{before}"

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return asdict(self)


def is_overflow(scale: float | None) -> bool:
    """Whether a gradient that is not finite may come from the loss scaling of fp16.

    The scaler then skips the step by itself and tries a smaller scale, which is how it finds a fitting one. Below a
    scale of 1 nothing overflows for the scale's sake any more.

    Args:
        scale: the scale of the loss; None where it is not scaled.
    """
    return scale is not None and scale > 1
