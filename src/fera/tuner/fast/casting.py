"""Adapters' weights in autocast's precision, cast together.

Autocast casts each weight by a call, and its gradient back by another. For the hundreds of small matrices of an adapter
a GPU takes less time than the host takes for the calls. Which weights a denoiser uses is learned from its forwards:
one that is cast and not used gets a gradient of zeros, where it should get none.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

# What is shared by the layers of one forward: the gate's, which forgets it when the forward ends.
Shared = dict[Hashable, Any]
# In it: weights that were cast together and not yet used, and those that were cast by themselves.
_CAST, _ALONE = ("cast together",), ("cast alone",)


class StepCasts:
    """Casts the weights that a denoiser's layers multiply with, all at the first call that needs one."""

    def __init__(self) -> None:
        self._known: dict[int, Tensor] = {}

    def __reduce__(self) -> tuple[type["StepCasts"], tuple[()]]:
        return (StepCasts, ())  # a copied denoiser has other weights

    def cast_alone(self, shared: Shared) -> None:
        """Have the layers that share this cast their own weights."""
        shared[_CAST] = {}

    def take(self, weight: Tensor, dtype: torch.dtype, shared: Shared) -> Tensor:
        """A weight in another precision; its gradient comes back in its own.

        Args:
            weight: of a layer that is being called.
            dtype: half precision.
            shared: by the layers of this forward.
        """
        if _CAST not in shared:
            shared[_CAST] = _together(list(self._known.values()), dtype)
        found: Tensor | None = shared[_CAST].pop(id(weight), None)
        if found is not None and found.dtype == dtype:
            return found
        shared.setdefault(_ALONE, {})[id(weight)] = weight
        return weight.to(dtype)

    def learn(self, shared: Shared) -> None:
        """Remember, at the end of a forward, what it used."""
        unused, alone = shared.get(_CAST, {}), shared.get(_ALONE, {})
        if unused or alone:
            self._known = {name: one for name, one in self._known.items() if name not in unused} | alone

    def forget(self) -> None:
        """Learn anew: layers or adapters have come or gone."""
        self._known = {}


def _together(weights: Sequence[Tensor], dtype: torch.dtype) -> dict[int, Tensor]:
    """Weights in another precision by their ids; none where they are not of one kind."""
    if len({(type(one), one.dtype, one.device) for one in weights}) != 1:
        return {}
    return dict(zip(map(id, weights), _Cast.apply(dtype, *weights), strict=True))


class _Cast(torch.autograd.Function):
    """Tensors in another precision, by one call each way for all of them."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = tensors[0].dtype
        return _cast(tensors, dtype)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(slopes, ctx.dtype)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    flat = torch.cat([one.reshape(-1) for one in tensors]).to(dtype)
    parts = flat.split([one.numel() for one in tensors])
    return tuple(part.view(one.shape) for part, one in zip(parts, tensors, strict=True))
