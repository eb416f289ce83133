"""Experts in a model that `torch.compile` compiles: in place of hooks, layers of their own, which the compiler sees."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.comfyui.experts import Experts
from fera.comfyui.layers import Place

# What a compiled module has its own module in.
_ORIGINAL = "_orig_mod"


class LayerWithExperts(nn.Module):
    """A layer of ComfyUI's model and what the experts of an adapter add to its output.

    The compiler guards what it made by the classes of layers: it makes another one for the model with experts, keeps
    both, and takes each where it fits. The weights of a call are tensors that it is handed, not constants.

    Args:
        layer: ComfyUI's.
        places: which of its outputs experts add to, and the experts.
    """

    def __init__(self, layer: nn.Module, places: Sequence[Place]) -> None:
        super().__init__()
        self.layer = layer
        self.spans = [(place.start, place.length) for place in places]
        self.downs = [place.experts.down for place in places if isinstance(place.experts, Experts)]
        self.ups = [place.experts.up for place in places if isinstance(place.experts, Experts)]
        # Of each sample's experts, shape (B, E), or (1, E) where all are alike.
        self.gates = torch.ones(1, 1)

    @property
    def weight(self) -> Any:
        """The layer's, for code that looks at it."""
        return self.layer.weight

    @property
    def bias(self) -> Any:
        """The layer's."""
        return self.layer.bias

    def place(self, device: torch.device, dtype: torch.dtype) -> None:
        """Move the experts."""
        self.downs = [down.to(device, dtype) for down in self.downs]
        self.ups = [up.to(device, dtype) for up in self.ups]

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """What the layer answers, with what the experts add.

        Args:
            x: shape (N, ..., in) or (N, in, H, W).
            *arguments: as the layer takes them.
            **options: likewise.
        """
        output: Tensor = self.layer(x, *arguments, **options)
        for (start, length), down, up in zip(self.spans, self.downs, self.ups, strict=True):
            down, up = down.to(x.dtype), up.to(x.dtype)
            weights = self._of_rows(x, len(down))
            if down.ndim == 2:
                ranks = functional.linear(x, down) * weights.view(-1, *[1] * (x.ndim - 2), len(down))
                change, axis = functional.linear(ranks, up), -1
            else:
                convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[down.ndim - 3]
                layer: Any = self.layer
                ranks = convolve(x, down, None, layer.stride, layer.padding, layer.dilation)
                change, axis = convolve(ranks * weights.view(-1, len(down), *[1] * (x.ndim - 2)), up), 1
            change = change.to(output.dtype)
            if length is None:
                output = output + change
            else:
                before, own, after = output.tensor_split((start, start + length), dim=axis)
                output = torch.cat([before, own + change, after], dim=axis)
        return output

    def _of_rows(self, x: Tensor, width: int) -> Tensor:
        weights = self.gates.repeat_interleave(width // self.gates.shape[1], dim=1).to(x.dtype)
        if len(weights) in (1, len(x)):
            return weights
        if x.ndim > 2 and len(x) % len(weights) == 0:  # frames and the like, folded into the batch
            return weights.repeat_interleave(len(x) // len(weights), dim=0)
        raise RuntimeError("rows of a layer that no gate is known for")


@contextmanager
def in_layers(model: nn.Module, layers: dict[str, LayerWithExperts]) -> Iterator[None]:
    """Put layers with experts into the places of those that they hold, and take them out again.

    Args:
        model: ComfyUI's.
        layers: by path in it.
    """
    before = []
    try:
        for path, layer in layers.items():
            parent, name = owner(model, path)
            layer.layer = parent._modules[name]  # type: ignore[assignment]  # it may have those of another adapter
            before.append((parent, name, layer.layer))
            parent._modules[name] = layer
        yield
    finally:
        for parent, name, original in reversed(before):
            parent._modules[name] = original


def owner(model: nn.Module, path: str) -> tuple[nn.Module, str]:
    """The module that holds a layer, past what the compiler puts around it, and the layer's name in it."""
    *parents, name = path.split(".")
    found: Any = model
    for part in parents:
        found = getattr(found, part)
        found = getattr(found, _ORIGINAL, found)
    return found, name


def is_compiled(model: nn.Module, path: str) -> bool:
    """Whether a compiled module holds a layer."""
    found: Any = model
    for part in path.split("."):
        found = getattr(found, part)
        if hasattr(found, _ORIGINAL):
            return True
    return False
