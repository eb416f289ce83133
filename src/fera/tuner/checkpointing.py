"""Gates that travel with checkpointed blocks.

Gradient checkpointing runs blocks again in the backward pass, when other forwards may have come and gone: the gates in
force then are not those of the forward that is differentiated.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor

from fera.models.rows import Count

Gates = dict[str, Tensor]
Rows = dict[str, Count]


class HoldsGates(Protocol):
    """The gate of a denoiser, as far as checkpointing needs it."""

    @property
    def gates(self) -> Gates | None:
        """Gate of each active adapter in the current forward, shape (B, E); None outside one."""

    @property
    def rows(self) -> Rows:
        """How many rows each sample of the current forward has in the inputs of layers."""

    def using(self, gates: Gates | None, rows: Rows | None = None) -> AbstractContextManager[None]:
        """Put given gates in force inside the block."""


class CarryGates:
    """A gradient checkpointing function whose recomputation sees the gates of the original forward.

    Args:
        checkpoint: the function that diffusers would call.
        gate: the gate of the denoiser.
    """

    def __init__(self, checkpoint: Callable[..., Any], gate: HoldsGates) -> None:
        self._checkpoint = checkpoint
        self._gate = gate

    def __call__(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Checkpoint a block, with the gates that are in force now."""
        if torch.compiler.is_compiling():
            return self._checkpoint(block, *args, **kwargs)
        # Arguments, not attributes: reentrant checkpointing sends gradients through arguments only.
        gates = self._gate.gates or {}
        return self._checkpoint(
            _Routed(block, self._gate, tuple(gates), self._gate.rows), *gates.values(), *args, **kwargs
        )


class _Routed:
    """A block that takes its adapters' gates first; diffusers checkpoints the `__call__` of what it is given."""

    def __init__(self, block: Callable[..., Any], gate: HoldsGates, adapters: tuple[str, ...], rows: Rows) -> None:
        self._block = block
        self._gate = gate
        self._adapters = adapters
        self._rows = rows

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        count = len(self._adapters)
        with self._gate.using(dict(zip(self._adapters, args[:count], strict=True)), self._rows):
            return self._block(*args[count:], **kwargs)
