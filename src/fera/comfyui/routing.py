"""A routed adapter at work in ComfyUI: a gate a call of the model, experts in its layers during that call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from fera.comfyui.adapter import Experts, LiveAdapter
from fera.comfyui.control import GateControl
from fera.comfyui.latent import latent_of, noise_level_of
from fera.comfyui.layers import Place
from fera.errors import FeraError
from fera.method.routing import Routing

# Gates that differ by less are one gate: they come from copies of one latent.
_ROUNDING = 1e-6
# ComfyUI's names of the call that is wrapped, and of its wrapper that compiles a model.
WRAPPER = "apply_model"
_COMPILED = "torch.compile"


@dataclass(frozen=True)
class Routed:
    """A wrapper of ComfyUI's `apply_model` that routes one adapter.

    Hooks sit in the layers during a call only: before and after it the model is as it was, whatever else is in it, and
    clones of it do not see each other's adapters. The base's weights are not touched: ComfyUI may keep them where it
    wants, in whatever format.

    Args:
        adapter: the adapter.
        places: where its layers are.
        strength: multiplies what the experts add.
        control: what a person set about the gate.
        traces: lists to append to, one entry a call.
    """

    adapter: LiveAdapter
    places: Sequence[Place]
    strength: float = 1.0
    control: GateControl = GateControl()
    traces: tuple[list[Routing], ...] = ()
    _moved: dict[tuple[torch.device, torch.dtype], list[Experts]] = field(default_factory=dict, compare=False)

    def controlled(self, control: GateControl) -> "Routed":
        """The same under another control.

        Raises:
            FeraError: the control is for another number of experts.
        """
        control.check(self.adapter.num_experts, self.adapter.name)
        return replace(self, control=control)

    def traced(self, trace: list[Routing]) -> "Routed":
        """The same, which appends to a list too."""
        return replace(self, traces=(*self.traces, trace))

    def free(self, *arguments: Any) -> None:
        """Let go of the weights on the device."""
        self._moved.clear()

    def __call__(
        self,
        executor: Any,
        x: Tensor,
        t: Tensor,
        c_concat: Tensor | None = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """Route one call of `apply_model`, whose arguments these are.

        Args:
            executor: goes on with the call; `class_obj` is ComfyUI's model.
            x: latents, shape (B, C, H, W), (B, C, T, H, W) or (B, C, L).
            t: sigmas, shape (B,).
            c_concat: conditions as channels; not read.
            c_crossattn: text; not read.
            control: of ControlNet; not read.
            transformer_options: ComfyUI's.
            **kwargs: other conditions; of these `denoise_mask` is read.

        Raises:
            FeraError: it cannot be told which sample a row of a layer belongs to, or the model is compiled.
        """
        model = executor.class_obj
        options = transformer_options or {}
        call = None
        if self._acts(model.model_sampling, t):
            if _COMPILED in options.get("wrappers", {}).get(WRAPPER, {}):
                raise _no_compiling(self.adapter.name)
            gates = self._gates(model.model_sampling, x, t, kwargs.get("denoise_mask"))
            call = _Call(self.adapter.name, gates * self.strength)
        handles = [] if call is None else self._hook(model, call)
        try:
            output: Tensor = executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        finally:
            for handle in handles:
                handle.remove()
        return output

    def _acts(self, sampling: Any, sigma: Tensor) -> bool:
        if (self.control.start, self.control.end) == (0.0, 1.0):
            return True
        latest, earliest = (float(sampling.percent_to_sigma(part)) for part in (self.control.end, self.control.start))
        return latest < float(sigma.max()) <= earliest

    def _gates(self, sampling: Any, x: Tensor, sigma: Tensor, denoise_mask: Tensor | None) -> Tensor:
        latent = latent_of(self.adapter.denoiser, sampling, sigma, x, denoise_mask)
        level = noise_level_of(sampling, sigma).to(latent.device)
        read = self.adapter.input
        entries = read(latent, level if read.reads_timestep else None)
        gates = self.control.applied(self.adapter.router.to(entries.device)(entries))
        for trace in self.traces:
            trace.append(
                Routing(self.adapter.name, sigma.detach(), read.indicator(entries, latent), gates, "model").to_cpu()
            )
        return gates

    def _hook(self, model: nn.Module, call: "_Call") -> list[RemovableHandle]:
        layers = [self._layer(model, place.path) for place in self.places]
        return [layer.register_forward_hook(self._acting(index, call)) for index, layer in enumerate(layers)]

    def _layer(self, model: nn.Module, path: str) -> nn.Module:
        layer: Any = model
        for part in path.split("."):
            layer = getattr(layer, part)
            if hasattr(layer, "_orig_mod"):  # compiled: what is put into it later is not seen
                raise _no_compiling(self.adapter.name)
        found: nn.Module = layer
        return found

    def _acting(self, index: int, call: "_Call") -> Callable[[nn.Module, tuple[Any, ...], Tensor], Tensor]:
        place = self.places[index]

        def act(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
            return call.add(place, self._experts(index, arguments[0]), module, arguments[0], output)

        return act

    def _experts(self, index: int, x: Tensor) -> Experts:
        """A layer's experts on the device and in the dtype of its input."""
        key = (x.device, x.dtype)
        if key not in self._moved:
            self._moved[key] = [
                Experts(place.experts.down.to(*key), place.experts.up.to(*key)) for place in self.places
            ]
        return self._moved[key][index]


class _Call:
    """One call of the model.

    Args:
        adapter: for errors.
        weights: of each sample's experts, shape (B, E), float32.
    """

    def __init__(self, adapter: str, weights: Tensor) -> None:
        self._adapter = adapter
        self._weights = weights
        self._ranks: dict[tuple[int, int, bool, torch.dtype], Tensor] = {}

    def add(self, place: Place, experts: Experts, module: nn.Module, x: Tensor, output: Tensor) -> Tensor:
        """A layer's output with what its experts add.

        Args:
            place: which of the layer's outputs they add to.
            experts: on the device and in the dtype of `x`.
            module: the layer.
            x: its input, shape (N, ..., in) or (N, in, H, W).
            output: what it answered.
        """
        down, up = experts.down, experts.up
        weights = self._of_rows(len(x), len(down), x.ndim > 2, x.dtype)
        if down.ndim == 2:
            change = functional.linear(
                functional.linear(x, down) * weights.view(-1, *[1] * (x.ndim - 2), len(down)), up
            )
            axis = -1
        else:
            convolve = (functional.conv1d, functional.conv2d, functional.conv3d)[down.ndim - 3]
            layer: Any = module
            ranks = convolve(x, down, None, layer.stride, layer.padding, layer.dilation)
            change = convolve(ranks * weights.view(-1, len(down), *[1] * (x.ndim - 2)), up)
            axis = 1
        change = change.to(output.dtype)
        if place.length is None:
            return output + change
        whole = output.clone()
        whole.narrow(axis, place.start, place.length).add_(change)
        return whole

    def _of_rows(self, count: int, width: int, has_tokens: bool, dtype: torch.dtype) -> Tensor:
        """Weights of the ranks for each row of a layer's input, shape (N, E r); once for all layers that ask alike."""
        key = (count, width, has_tokens, dtype)
        if key not in self._ranks:
            each = self._weights.repeat_interleave(width // self._weights.shape[1], dim=1)
            self._ranks[key] = self._rows(each, count, has_tokens).to(dtype)
        return self._ranks[key]

    def _rows(self, each: Tensor, count: int, has_tokens: bool) -> Tensor:
        samples = len(each)
        if count == samples:
            return each
        if bool((each - each[:1]).abs().max() <= _ROUNDING):
            return each[:1].expand(count, -1)
        if has_tokens and count % samples == 0:  # frames and the like, folded into the batch
            return each.repeat_interleave(count // samples, dim=0)
        raise FeraError(
            f"a layer sees {count} rows, and the call has {samples} latents whose gates of {self._adapter} differ: it "
            "cannot be told which row belongs to which. Draw one picture a batch"
        )


def _no_compiling(adapter: str) -> FeraError:
    return FeraError(
        f"the model is compiled (torch.compile), and the experts of {adapter} would not be seen in it; take the node "
        "that compiles it out"
    )
