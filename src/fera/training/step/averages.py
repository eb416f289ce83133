"""Which weights a run measures, draws with and keeps: the last ones, or an average over its steps.

A run trains on with its own weights in any case: `applied` puts the average in their place for a while and then gives
them back, bit for bit, so that a run does not depend on when it is looked at.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from fera.config import OptimizationConfig
from fera.training.step.optimizers import is_schedule_free


class Average(Protocol):
    """What to measure, draw with and keep."""

    @property
    def name(self) -> str | None:
        """What it is called in `summary.json`; None for the last weights."""

    def update(self) -> None:
        """Count the weights after an optimizer step."""

    def applied(self) -> AbstractContextManager[None]:
        """Have it in the place of the weights that train."""

    def state_dict(self) -> dict[str, Any] | None:
        """What `load_state_dict` needs, of tensors and plain values; `applied` does not alter it."""

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Go back to a state; the weights that train are a part of it."""


def average_of(
    settings: OptimizationConfig, optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter]
) -> Average:
    """The average that a run's settings ask for.

    Args:
        settings: the settings of the run.
        optimizer: over the parameters.
        parameters: that train, where they will stay.
    """
    if is_schedule_free(optimizer):
        return ScheduleFree(optimizer, parameters)
    return Ema(parameters, settings.ema_decay) if settings.use_ema else LastWeights()


class LastWeights:
    """No average."""

    name = None

    def update(self) -> None:
        """Nothing to count."""

    def applied(self) -> AbstractContextManager[None]:
        """They are there."""
        return nullcontext()

    def state_dict(self) -> None:
        """They are the adapter that a checkpoint holds."""

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Nothing to restore."""


class Ema:
    r"""Exponential moving average, as diffusers has it.

    After step n the average moves by :math:`1 - \min(\text{decay}, n / (n + 9))` of the way to the weights, and after
    the first all of it: at the start of a run it follows them closely, whatever the decay.

    Args:
        parameters: that train.
        decay: in [0, 1).
    """

    name = "ema"

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._model = EMAModel(self._parameters, decay=decay, foreach=True)

    def update(self) -> None:
        """Move towards the weights."""
        self._model.step(self._parameters)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the average in their place."""
        with _given_back(self._parameters):
            self._model.copy_to(self._parameters)
            yield

    def state_dict(self) -> dict[str, Any]:
        """The average, and the weights."""
        return {"weights": _copies(self._parameters), "ema": self._model.state_dict()}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore both."""
        assert state is not None  # the settings are those of the checkpoint
        self._model.load_state_dict(state["ema"])
        if self._parameters:
            self._model.to(self._parameters[0].device)
        _fill(self._parameters, state["weights"])


class ScheduleFree:
    """The average that a schedule-free optimizer keeps by itself.

    Args:
        optimizer: over the parameters.
        parameters: that train.
    """

    name = "schedule_free"

    def __init__(self, optimizer: Any, parameters: Sequence[nn.Parameter]) -> None:
        self._optimizer = optimizer
        self._parameters = list(parameters)
        optimizer.train()

    def update(self) -> None:
        """The optimizer did."""

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Have the average in their place."""
        # The optimizer computes one from the other, there and back again, with rounding.
        with _given_back(self._parameters):
            self._optimizer.eval()
            try:
                yield
            finally:
                self._optimizer.train()

    def state_dict(self) -> dict[str, Any]:
        """The weights; what the average follows from is the optimizer's state."""
        return {"weights": _copies(self._parameters)}

    def load_state_dict(self, state: dict[str, Any] | None) -> None:
        """Restore them."""
        assert state is not None
        _fill(self._parameters, state["weights"])


def _copies(parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in parameters]


@torch.no_grad()
def _fill(parameters: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for parameter, value in zip(parameters, values, strict=True):
        parameter.copy_(value)


@contextmanager
def _given_back(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Give parameters the values back that they have now."""
    values = _copies(parameters)
    try:
        yield
    finally:
        _fill(parameters, values)
