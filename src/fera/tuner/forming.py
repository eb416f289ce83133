r"""Weights of a step for many small layers at once.

On a GPU a call costs more than the arithmetic of a small layer. Where all samples of a forward have one gate, the
weights :math:`W + B \operatorname{diag}(g \otimes 1_r) A` of layers of one shape are formed in five calls, however many
there are. Which layers a denoiser calls, and in which order, is learned from its forwards. This knows of a layer only
what it adds to what.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

# Weights of more bytes are not formed at once: they stand in memory until their layers have been called.
_MOST_BYTES = 2**28

# What is shared by the layers of one forward: the gate's, which forgets it when the forward ends.
Shared = dict[Hashable, Any]


class Formable(Protocol):
    """A layer whose weight can be formed with others."""

    def summands(self, adapter: str) -> tuple[Any, Any, Any, float]:
        """The layer of W, that of A, that of B, and the scale of the experts."""


class StepWeights:
    """Forms the weights of a denoiser's small layers, and remembers which to form together."""

    def __init__(self) -> None:
        self._groups: dict[tuple[str, int], _Group] = {}  # of each adapter and layer
        self._order: dict[str, dict[int, Formable]] = {}

    def __reduce__(self) -> tuple[type["StepWeights"], tuple[()]]:
        return (StepWeights, ())  # a copied denoiser has other layers, and learns their order anew

    def take(self, layer: Formable, adapter: str, row: Tensor, shared: Shared) -> Tensor | None:
        """The weight of a layer, formed with those of the layers that follow it.

        Args:
            layer: it asks in its call.
            adapter: its only active one.
            row: the weight of each rank, the gate times the scale, shape (1, E r), in the dtype of the layer's.
            shared: by the layers of this forward.

        Returns:
            Shape (out, in), for this call alone; None where the layer has to form it by itself.
        """
        formed: dict[int, Tensor] = shared.setdefault(("formed", adapter), {})
        if id(layer) not in formed:
            group = self._groups.get((adapter, id(layer)))
            if group is None:
                shared.setdefault("asked", []).append((adapter, layer))
                return None
            formed.update(group.form(row))
        weight = formed.pop(id(layer), None)
        if weight is None:
            self.forget()
        return weight

    def learn(self, shared: Shared) -> None:
        """Remember, at the end of a forward, the layers that asked for the first time."""
        for adapter in dict.fromkeys(adapter for adapter, _ in shared.get("asked", ())):
            new = {id(layer): layer for name, layer in shared["asked"] if name == adapter}
            order = self._order[adapter] = {**self._order.get(adapter, {}), **new}
            for chunk in _chunks(list(order.values()), adapter):
                of_kind = defaultdict(list)
                for layer in chunk:
                    of_kind[_kind(layer, adapter)].append(layer)
                for layers in of_kind.values():
                    group = _Group(adapter, tuple(layers))
                    self._groups |= {(adapter, id(layer)): group for layer in layers}

    def forget(self) -> None:
        """Learn anew: layers or adapters have come or gone."""
        self._groups, self._order = {}, {}


@dataclass(frozen=True)
class _Group:
    """Layers of one kind that follow each other.

    Args:
        adapter: whose experts are added.
        layers: in the order of their calls.
    """

    adapter: str
    layers: tuple[Formable, ...]

    def form(self, row: Tensor) -> dict[int, Tensor]:
        """Weights by the layers' ids; none where they are not of one kind any more."""
        bases, down, up, scales = zip(*(layer.summands(self.adapter) for layer in self.layers), strict=True)
        weights, a, b = ([part.weight for part in parts] for parts in (bases, down, up))
        kind = (nn.Parameter, row.dtype, row.device)
        alike = all((type(one), one.dtype, one.device) == kind for one in (*weights, *a, *b))
        if not alike or len(set(scales)) > 1:
            return {}
        formed = torch.bmm(torch.stack(b) * row, torch.stack(a)).unbind()
        torch._foreach_add_(formed, weights)
        return {id(layer): weight for layer, weight in zip(self.layers, formed, strict=True)}


def _kind(layer: Formable, adapter: str) -> Hashable:
    """What layers have in common that are formed together."""
    *parts, scale = layer.summands(adapter)
    return scale, *((part.weight.shape, part.weight.dtype, part.weight.device) for part in parts)


def _chunks(layers: Sequence[Formable], adapter: str) -> Iterator[list[Formable]]:
    """Layers that follow each other, as many as may stand in memory at once."""
    chunk: list[Formable] = []
    held = 0
    for layer in layers:
        weight = layer.summands(adapter)[0].weight
        size = weight.numel() * weight.element_size()
        if chunk and held + size > _MOST_BYTES:
            yield chunk
            chunk, held = [], 0
        chunk.append(layer)
        held += size
    if chunk:
        yield chunk
