"""A part of a pipeline without its weights: it says what the part is, takes no memory and cannot compute."""

from typing import Any, TypeVar

import torch
from torch import nn

from fera.errors import FeraError

_ATTRIBUTE = "_fera_empty"

_Part = TypeVar("_Part", bound=nn.Module)


class PartIsEmpty(FeraError):
    """A part without weights was asked to compute.

    Attributes:
        part: its name in the pipeline.
    """

    def __init__(self, part: str) -> None:
        super().__init__(f"the base's {part} was used before it was loaded")
        self.part = part


def emptied(part: _Part, name: str, dtype: torch.dtype) -> _Part:
    """Stand in for a part that is on the meta device.

    Its parameters and buffers are on the CPU, where pipelines look for their device; each is one number, seen in the
    shape of the whole. Whatever computes with it raises `PartIsEmpty`.

    Args:
        part: the part, made on the meta device; changed in place.
        name: its name in the pipeline.
        dtype: what its floating point weights will be loaded in.

    Returns:
        The part.
    """

    def refuse(*_: Any) -> None:
        raise PartIsEmpty(name)

    _fill(part, "cpu", dtype)
    for module in part.modules():
        module.register_forward_pre_hook(refuse)
    vars(part)[_ATTRIBUTE] = True
    return part.eval()


def is_empty(part: Any) -> bool:
    """Whether a part has no weights yet."""
    return isinstance(part, nn.Module) and _ATTRIBUTE in vars(part)


def move_empty(part: nn.Module, device: torch.device | str) -> None:
    """Let an empty part say that it is on a device."""
    _fill(part, device, None)


def _fill(part: nn.Module, device: torch.device | str, dtype: torch.dtype | None) -> None:
    """Let each tensor be one number, seen in the shape of the whole."""
    for module in part.modules():
        for held in (module._parameters, module._buffers):
            for key, tensor in held.items():
                if tensor is not None:
                    kind = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
                    number: Any = torch.zeros((), dtype=kind, device=device).expand(tensor.shape)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    held[key] = nn.Parameter(number, requires_grad=False) if is_parameter else number
