"""A frozen denoiser whose weights are held as their principal parts, where that takes less memory.

Of each weight the leading singular directions that hold a share of its energy are kept, as two factors; the rest is
gone. That changes what the base draws: docs/evidence.md has what it costs the emoji base.
"""

from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.method.subspace import principal_subspace
from fera.models.components import denoisers
from fera.support.progress import SILENT, Listener
from fera.tuner.fingerprint import fingerprint, keep_fingerprint


@dataclass(frozen=True)
class Compression:
    """What compressing a denoiser came to.

    Args:
        factored: layers that are held as factors.
        layers: linear layers and convolutions that it has.
        before: numbers in its weights before.
        after: and now.
    """

    factored: int
    layers: int
    before: int
    after: int

    def __str__(self) -> str:
        return (
            f"{self.factored} of {self.layers} layers held as factors, {self.after:,} numbers in the place of "
            f"{self.before:,} ({self.after / self.before:.0%})"
        )


class _Factored:
    """A layer whose weight is the product of two: `left` (out, k) and `right` (k, in), frozen."""

    _parameters: dict[str, Any]

    @property
    def weight(self) -> Tensor:
        """The weight, formed anew: for its size, its dtype and where it is. Writing to it changes nothing."""
        left, right = self._parameters["left"], self._parameters["right"]
        return (left.flatten(1) @ right.flatten(1)).view(len(left), *right.shape[1:])


class FactoredLinear(_Factored, nn.Linear):  # type: ignore[override]
    """A linear layer of two factors."""

    def forward(self, input: Tensor) -> Tensor:
        """What the layer computes with the product of its factors, in two thin products."""
        held = self._parameters
        return nn.functional.linear(nn.functional.linear(input, held["right"]), held["left"], held["bias"])


class FactoredConv2d(_Factored, nn.Conv2d):  # type: ignore[override]
    """A convolution of two factors: one to k channels, and one of 1x1 from those."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """An ordinary convolution where one is asked for: PEFT makes a LoRA's of the class of the layer it adapts."""
        return nn.Conv2d(*args, **kwargs) if args else super().__new__(cls)

    def forward(self, input: Tensor) -> Tensor:
        """What the layer computes with the product of its factors."""
        held = self._parameters
        inner = self._conv_forward(input, held["right"], None)
        return nn.functional.conv2d(inner, held["left"], held["bias"])


@torch.no_grad()
def compress(
    target: Any, energy: float, *, device: torch.device | str | None = None, listener: Listener = SILENT
) -> Compression:
    """Hold the weights of denoisers as their principal parts, where those are smaller.

    Linear layers and convolutions of two dimensions whose factors have fewer numbers than their weight are replaced in
    place; they are frozen. Adapters that were trained on the whole base load into it, and the other way round. Compress
    before adapters are put in.

    Args:
        target: a diffusers pipeline or a denoiser, its weights in floating point.
        energy: the share of each weight's energy that is kept, above 0 and below 1.
        device: where to take weights apart, in float64; where they are when left out.
        listener: hears how far it is.

    Raises:
        FeraError: the energy is out of range, or the denoiser has adapters, quantized weights or is compressed already.
    """
    if isinstance(energy, bool) or not isinstance(energy, int | float) or not 0 < energy < 1:
        raise FeraError(f"`energy` must be a share above 0 and below 1, got {energy!r}")
    found = []
    for denoiser in denoisers(target).values():
        _check(denoiser)
        keep_fingerprint(denoiser, fingerprint(denoiser))
        found.append(_compress(denoiser, energy, device, listener))
    return Compression(*(sum(getattr(one, name) for one in found) for name in Compression.__dataclass_fields__))


def is_compressed(model: nn.Module) -> bool:
    """Whether some weights of a denoiser are held as factors."""
    return any(isinstance(module, _Factored) for module in model.modules())


def _check(denoiser: nn.Module) -> None:
    if is_compressed(denoiser):
        raise FeraError("the base is compressed already")
    if any(isinstance(module, BaseTunerLayer) for module in denoiser.modules()):
        raise FeraError("the denoiser has adapters: compress the base before they are put in")
    for name, weight in denoiser.named_parameters():
        if weight.is_meta or not weight.is_floating_point() or type(weight) is not nn.Parameter:
            raise FeraError(f"{name} is quantized or not in memory: a base can be compressed or that, not both")


def _compress(denoiser: nn.Module, energy: float, device: torch.device | str | None, listener: Listener) -> Compression:
    layers = [(name, module) for name, module in denoiser.named_modules() if type(module) in (nn.Linear, nn.Conv2d)]
    before = sum(weight.numel() for weight in denoiser.parameters())
    factored = 0
    for number, (name, layer) in enumerate(layers, start=1):
        if (smaller := _factors(layer, energy, device)) is not None:
            parent, _, child = name.rpartition(".")
            setattr(denoiser.get_submodule(parent), child, smaller)
            factored += 1
        listener.advance("taking weights apart", number, len(layers))
    after = sum(weight.numel() for weight in denoiser.parameters())
    return Compression(factored, len(layers), before, after)


def _factors(layer: Any, energy: float, device: torch.device | str | None) -> nn.Module | None:
    """The layer as factors; None where they are no smaller."""
    weight = layer.weight
    if getattr(layer, "groups", 1) != 1:
        return None
    subspace = principal_subspace(weight if device is None else weight.to(device), energy)
    kept = len(subspace.values)
    if kept * (len(weight) + weight[0].numel()) >= weight.numel():
        return None
    left = subspace.left
    right = subspace.values[:, None] * subspace.right
    shape = [1] * (weight.ndim - 2)
    kind: Any = FactoredLinear if isinstance(layer, nn.Linear) else FactoredConv2d
    made: Any = kind.__new__(kind)
    made.__dict__.update(vars(layer))
    made.__dict__["_parameters"] = {
        "left": _frozen(left.view(*left.shape, *shape), weight),
        "right": _frozen(right.view(kept, *weight.shape[1:]), weight),
        "bias": layer.bias,
    }
    return made


def _frozen(factor: Tensor, weight: Tensor) -> nn.Parameter:
    layout = torch.contiguous_format
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous():
        layout = torch.channels_last
    held = factor.to(weight.device, weight.dtype).contiguous(memory_format=layout)
    return nn.Parameter(held, requires_grad=False)
