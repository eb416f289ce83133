"""Where benchmarks run, and in which precision: builders of races are given one of these."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from benchmarks.meters import Meter, peak_bytes


@dataclass(frozen=True)
class Setting:
    """Device, precision and size of what runs.

    Args:
        small: tiny sizes, to see that all of it runs.
        device: where weights and batches lie.
        dtype: of the frozen weights; with half precision, adapters train in float32 under autocast, as `fera train` and
            diffusers' scripts have it, and draw in the base's.
    """

    small: bool = False
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32

    @property
    def mixed_precision(self) -> str:
        """The same as `fera train` and accelerate call it."""
        return {torch.float32: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.dtype]

    @property
    def is_cpu(self) -> bool:
        """Whether there is no other device."""
        return self.device.type == "cpu"

    @property
    def peak_bytes(self) -> Meter:
        """The meter for the device's memory."""
        return peak_bytes(self.device)

    def place(self, module: Any) -> Any:
        """A module on the device, frozen weights in their precision."""
        return module.to(self.device, self.dtype)


def autocast_of(module: nn.Module) -> AbstractContextManager[Any]:
    """Mixed precision, where the module's frozen weights are of half precision."""
    weight = next(module.parameters())
    return nullcontext() if weight.dtype == torch.float32 else torch.autocast(weight.device.type, weight.dtype)
