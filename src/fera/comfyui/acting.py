"""Experts in the layers of ComfyUI's model during one call of it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.comfyui.compiled import LayerWithExperts, in_layers, is_compiled, owner
from fera.comfyui.experts import Experts, LayerExperts
from fera.comfyui.layers import Place
from fera.errors import FeraError

# Gates that differ by less are one gate: they come from copies of one latent.
_ROUNDING = 1e-6
# ComfyUI's names of the call that is wrapped, and of its wrapper that compiles a model.
WRAPPER = "apply_model"
_COMPILED = "torch.compile"


class ExpertLayers:
    """The experts of one adapter, which act in their layers while they are asked to.

    Hooks sit in the layers during a call only: before and after it the model is as it was, whatever else is in it, and
    clones of it do not see each other's adapters. The base's weights are not touched: ComfyUI may keep them where it
    wants, in whatever format.

    Args:
        adapter: its name, for messages.
        places: where its layers are.
    """

    def __init__(self, adapter: str, places: Sequence[Place]) -> None:
        self._adapter = adapter
        self._places = places
        self._moved: dict[tuple[torch.device, torch.dtype], list[LayerExperts]] = {}
        self._traced: dict[str, LayerWithExperts] = {}

    def free(self) -> None:
        """Let go of the weights on the device."""
        self._moved.clear()
        self._traced.clear()

    @contextmanager
    def acting(self, model: nn.Module, weights: Tensor, options: dict[str, Any], frames: int = 1) -> Iterator[None]:
        """Let the experts act.

        Args:
            model: ComfyUI's.
            weights: of each sample's experts, shape (B, E), float32.
            options: ComfyUI's `transformer_options` of the call.
            frames: rows of the call that are one sample.

        Raises:
            FeraError: the model is compiled, and the experts are no LoRA. Within: it cannot be told which sample a row
                of a layer belongs to.
        """
        is_known = _COMPILED in options.get("wrappers", {}).get(WRAPPER, {})
        if is_known or is_compiled(model, self._places[0].path):
            with in_layers(model, self._for_compiling(model, weights)):
                yield
            return
        layers = [model.get_submodule(place.path) for place in self._places]
        call = _Call(self._adapter, weights, frames)
        handles = [layer.register_forward_hook(self._hook(index, call)) for index, layer in enumerate(layers)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _for_compiling(self, model: nn.Module, weights: Tensor) -> dict[str, LayerWithExperts]:
        """Layers with these experts at the weights of a call, by path."""
        if not self._traced:
            if any(not isinstance(place.experts, Experts) for place in self._places):
                raise FeraError(
                    f"the model is compiled (torch.compile), where fera routes LoRA experts alone, and those of "
                    f"{self._adapter} are others; take the node that compiles it out"
                )
            paths: dict[str, list[Place]] = {}
            for place in self._places:
                paths.setdefault(place.path, []).append(place)
            for path, places in paths.items():
                parent, name = owner(model, path)
                layer = LayerWithExperts(parent.get_submodule(name), places)
                layer.place(weights.device, _dtype_of(model))
                self._traced[path] = layer
        is_one = bool((weights - weights[:1]).abs().max() <= _ROUNDING)
        for layer in self._traced.values():
            layer.gates = weights[:1] if is_one else weights
        return self._traced

    def _hook(self, index: int, call: "_Call") -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        place = self._places[index]

        def act(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            return call.add(place, self._experts(index, arguments[0]), module, arguments[0], output)

        return act

    def _experts(self, index: int, x: Tensor) -> LayerExperts:
        """A layer's experts on the device and in the dtype of its input."""
        key = (x.device, x.dtype)
        if key not in self._moved:
            self._moved[key] = [place.experts.to(*key) for place in self._places]
        return self._moved[key][index]


class _Call:
    """One call of the model.

    Args:
        adapter: for errors.
        weights: of each sample's experts, shape (B, E), float32.
        frames: rows of the call that are one sample.
    """

    def __init__(self, adapter: str, weights: Tensor, frames: int) -> None:
        self._adapter = adapter
        self._frames = frames
        self._weights = weights
        self._are_alike: bool | None = None
        self._ranks: dict[tuple[int, int, bool, torch.dtype], Tensor] = {}

    def add(self, place: Place, experts: LayerExperts, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """A layer's output with what its experts add.

        Args:
            place: which of the layer's outputs they add to.
            experts: on the device and in the dtype of `x`.
            module: the layer.
            x: its input, shape (N, ..., in) or (N, in, H, W).
            output: what it answered.
        """
        axis = 1 if hasattr(module, "kernel_size") else -1
        if not isinstance(experts, Experts):
            gates = self._of_rows(len(x), self._weights.shape[1], x.ndim > 2, x.dtype)
            base = _Base(module, place, axis, x, output)
            return _added(place, axis, output, experts.change(x, gates, self._is_one(), base))  # type: ignore[attr-defined]
        down, up = experts.down, experts.up
        weights = self._of_rows(len(x), len(down), x.ndim > 2, x.dtype)
        if down.ndim == 2:
            ranks = functional.linear(x, down) * weights.view(-1, *[1] * (x.ndim - 2), len(down))
            if place.length is None and output.dtype == x.dtype:
                # In one pass over the outputs: they are what costs time, not the few ranks.
                return torch.addmm(output.flatten(0, -2), ranks.flatten(0, -2), up.t()).view(output.shape)
            change = functional.linear(ranks, up)
        else:
            convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[down.ndim - 3]
            layer: Any = module
            ranks = convolve(x, down, None, layer.stride, layer.padding, layer.dilation)
            change = convolve(ranks * weights.view(-1, len(down), *[1] * (x.ndim - 2)), up)
        return _added(place, axis, output, change)

    def _of_rows(self, count: int, width: int, has_tokens: bool, dtype: torch.dtype) -> Tensor:
        """Weights of the ranks for each row of a layer's input, shape (N, E r); once for all layers that ask alike."""
        key = (count, width, has_tokens, dtype)
        if key not in self._ranks:
            each = self._weights.repeat_interleave(width // self._weights.shape[1], dim=1)
            self._ranks[key] = self._rows(each, count, has_tokens).to(dtype)
        return self._ranks[key]

    def _is_one(self) -> bool:
        """Whether all samples have one gate."""
        if self._are_alike is None:  # asked once a call: to look at numbers waits for the device
            self._are_alike = bool((self._weights - self._weights[:1]).abs().max() <= _ROUNDING)
        return self._are_alike

    def _rows(self, each: Tensor, count: int, has_tokens: bool) -> Tensor:
        samples = len(each)
        if count == samples:
            return each
        if self._is_one():
            return each[:1].expand(count, -1)
        is_frames = count == samples * self._frames
        if is_frames or (has_tokens and count % samples == 0):  # frames and the like, folded into the batch
            return each.repeat_interleave(count // samples, dim=0)
        raise FeraError(
            f"a layer sees {count} rows, and the call has {samples} latents whose gates of {self._adapter} differ: it "
            "cannot be told which row belongs to which. Draw one picture a batch"
        )


@dataclass(frozen=True)
class _Base:
    """A layer without what experts add to it, or the part of its outputs that some are for.

    Args:
        module: the layer.
        place: of the experts.
        axis: of its outputs.
        x: what it was given.
        answered: and answered, with what other experts may have added.
    """

    module: Any
    place: Place
    axis: int
    x: Tensor
    answered: Tensor

    def output(self, x: Tensor) -> Tensor:
        """What it answers."""
        is_known = x is self.x and len(self.module._forward_hooks) == 1
        return self._part(self.answered if is_known else self.module.forward(x))

    def product(self, x: Tensor) -> Tensor:
        """The same without its bias, whatever keeps its weight and bias: their effect is all that is looked at."""
        if self.axis == 1:
            nothing = x.new_zeros(1, x.shape[1], *self.module.kernel_size)
            bias = self._part(self.module.forward(nothing)).flatten(2)[..., :1].unflatten(2, (1,) * (x.ndim - 2))
        else:
            bias = self._part(self.module.forward(x.new_zeros(1, x.shape[-1])))[0]
        return self.output(x) - bias

    def _part(self, whole: Tensor) -> Tensor:
        return whole if self.place.length is None else whole.narrow(self.axis, self.place.start, self.place.length)


def _added(place: Place, axis: int, output: Tensor, change: Tensor) -> Tensor:
    change = change.to(output.dtype)
    if place.length is None:
        return output + change
    whole = output.clone()
    whole.narrow(axis, place.start, place.length).add_(change)
    return whole


def _dtype_of(model: Any) -> torch.dtype:
    """What ComfyUI's model computes in."""
    dtype: torch.dtype = model.get_dtype_inference() if hasattr(model, "get_dtype_inference") else model.get_dtype()
    return dtype
