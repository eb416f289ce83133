r"""The weights of many small layers in a step, formed together.

On a GPU a call costs more than the arithmetic of a small layer. Where all samples of a forward have one gate, the
weights :math:`W + B \operatorname{diag}(g \otimes 1_r) A` of layers of one kind are formed in five calls, however many
there are. All forwards do so, the first one too, so that one seed gives one picture. Of a layer, this knows only what
its weight is the sum of.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

# Weights up to this size are formed together: larger ones keep a GPU busy.
_SMALL = 2**22
# Weights of more bytes are not formed at once: they stand in memory until their layers have been called.
_MOST_BYTES = 2**28

# What is shared by the layers of one forward: the gate's, which forgets it when the forward ends. Formed layers lie in
# it under the names of their adapters.
Shared = dict[Hashable, Any]


class Summands(NamedTuple):
    """What a layer's weight of a step is made of.

    Args:
        weight: the weight of the base, shape (out, in).
        bias: the bias of the base, which stays as it is.
        a: the experts' A, stacked, shape (E r, in).
        b: the experts' B, stacked, shape (out, E r).
        scale: the scale of the experts.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor
    scale: float

    @property
    def kind(self) -> Hashable:
        """What layers have in common that are formed together."""
        parts = (self.weight, self.a, self.b)
        return self.scale, *((part.shape, part.dtype, part.device) for part in parts)


class FormedLayer(NamedTuple):
    """What a layer multiplies with in a step.

    Args:
        weight: with the experts in it, shape (out, in).
        bias: the bias of the base.
        scale: the scale of the experts.
    """

    weight: Tensor
    bias: Tensor | None
    scale: float

    def output(self, x: Tensor) -> Tensor:
        """The layer's output for an input of the weight's dtype, shape (N, ..., in)."""
        return nn.functional.linear(x, self.weight, self.bias)


@runtime_checkable
class Formable(Protocol):
    """A layer whose weight can be formed with others."""

    def summands(self, adapter: str) -> Summands | None:
        """What its weight is made of; None where it is not a weight and this adapter's experts alone."""


class StepWeights:
    """Forms the weights of a denoiser's small layers, and keeps which to form together."""

    def __init__(self) -> None:
        self._groups: dict[str, dict[int, _Group]] = {}  # of each adapter and layer

    def __reduce__(self) -> tuple[type["StepWeights"], tuple[()]]:
        return (StepWeights, ())  # a copied denoiser has other layers

    def take(
        self, layer: Formable, adapter: str, rows: Tensor, denoiser: nn.Module, shared: Shared
    ) -> FormedLayer | None:
        """A layer formed, and with it those of its group, which lie in `shared` under their ids until they are called.

        Args:
            layer: it asks in its call.
            adapter: its only active one.
            rows: the weight of each rank for all samples, the gate times the scale, shape (1, E r), in the layer's
                dtype.
            denoiser: the denoiser of the layer.
            shared: by the layers of this forward.

        Returns:
            For this call alone; None where the layer has to see for itself.
        """
        formed: dict[int, FormedLayer] = shared.setdefault(adapter, {})
        if id(layer) in formed:  # and did not fit
            return None
        if adapter in self._groups:
            group = self._groups[adapter].get(id(layer))
            if group is None:
                return None
            formed.update(group.form(rows))
        if id(layer) not in formed:  # there are no groups yet, or layers differ that were of a kind
            self._groups = {**self._groups, adapter: _groups(denoiser, adapter)}
            group = self._groups[adapter].get(id(layer))
            formed.update(group.form(rows) if group is not None else {})
        return formed.pop(id(layer), None)

    def forget(self) -> None:
        """Look for layers anew: they or adapters have come or gone."""
        self._groups = {}


@dataclass(frozen=True)
class _Group:
    """Layers of one kind.

    Args:
        adapter: whose experts are added.
        layers: in the denoiser's order.
    """

    adapter: str
    layers: tuple[Formable, ...]

    def form(self, rows: Tensor) -> dict[int, FormedLayer]:
        """Its layers by their ids, without those that are not what they were; none where they differ in kind."""
        found = {id(layer): summands for layer in self.layers if (summands := layer.summands(self.adapter)) is not None}
        if not found:
            return {}
        weights, biases, a, b, scales = zip(*found.values(), strict=True)
        kinds = {one.dtype for one in (*weights, *a, *b)}, {one.device for one in weights}, set(scales)
        if any(len(kind) > 1 for kind in kinds):
            return {}
        formed = torch.bmm(_stacked(b) * rows, _stacked(a)).unbind()
        torch._foreach_add_(formed, weights)
        return dict(zip(found, map(FormedLayer, formed, biases, scales), strict=True))


def _stacked(matrices: tuple[Tensor, ...]) -> Tensor:
    """Matrices of one shape along a new axis; `torch.stack` takes a call for each."""
    return torch.cat(matrices).view(len(matrices), *matrices[0].shape)


def _groups(denoiser: nn.Module, adapter: str) -> dict[int, _Group]:
    """The group of each small layer of a denoiser, by the layer's id."""
    groups: dict[int, _Group] = {}
    for chunk in _chunks(denoiser, adapter):
        of_kind = defaultdict(list)
        for layer, summands in chunk:
            of_kind[summands.kind].append(layer)
        for layers in of_kind.values():
            groups |= dict.fromkeys(map(id, layers), _Group(adapter, tuple(layers)))
    return groups


def _chunks(denoiser: nn.Module, adapter: str) -> Iterator[list[tuple[Formable, Summands]]]:
    """Small layers that follow each other, as many as may stand in memory at once."""
    chunk: list[tuple[Formable, Summands]] = []
    held = 0
    for layer in denoiser.modules():
        if not isinstance(layer, Formable):
            continue
        summands = layer.summands(adapter)
        if summands is None or summands.weight.numel() > _SMALL:
            continue
        size = summands.weight.numel() * summands.weight.element_size()
        if chunk and held + size > _MOST_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append((layer, summands))
        held += size
    if chunk:
        yield chunk
