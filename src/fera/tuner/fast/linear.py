"""The routed layer of a plain `nn.Linear`: what PEFT's layer computes, in fewer and smaller steps."""

from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from torch.nn import Identity, Linear, Parameter

from fera.tuner.fast.forming import FormedLayer, Summands
from fera.tuner.fast.product import routed_linear, routed_rows
from fera.tuner.layer import RoutedLora
from fera.tuner.subspace import SubspaceFactor

# Measured on a CPU: what a merged weight must save in multiplications for each of its entries, since it is also written
# and read, and what the fewer calls are worth where one serves all samples.
_MERGE_FROM = 1.25
_CALLS = 2**16

# Multiplications of a layer from which a GPU takes longer for them than its host for the layer's calls (on an H100), in
# drawing and in training, which calls more.
_BUSY, _BUSY_TRAINING = 2**32, 2**34

# Autocast leaves other dtypes as they are.
_CAST_BY_AUTOCAST = {torch.float32, torch.float16, torch.bfloat16}


class _Plain(NamedTuple):
    """The parts of a layer that has no hook, merge, dropout or second adapter.

    Args:
        adapter: its one active adapter.
        variant: that routes it.
        weight: the weight of the base, shape (out, in).
        bias: the bias of the base.
        a: the experts' A, stacked, shape (E r, in).
        b: the experts' B, stacked, shape (out, E r).
    """

    adapter: str
    variant: RoutedLora
    weight: Tensor
    bias: Tensor | None
    a: Tensor
    b: Tensor


class RoutedLinear(LoraLinear):
    r"""PEFT's LoRA layer, with short cuts where one routed adapter acts alone on an unchanged `nn.Linear`.

    The experts' sum is added by the product that computes it instead of in a pass of its own (`routed_linear`). Where
    nothing trains and the multiplications are fewer, the weight of the step is formed first,

    .. math:: W + B \operatorname{diag}(g \otimes 1_r) A,

    once for all samples whose gates are equal (the halves of classifier-free guidance see one latent), else once a
    sample. On a GPU the weights of small layers are formed together (`StepWeights`) where all gates are equal. In half
    precision the weight is rounded once more and the output once less. Under autocast, inputs and weights are cast
    once, to its dtype: PEFT's layer casts the input there and back. Everything else is left to PEFT's forward and its
    call of `RoutedLora`.
    """

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output and the experts' gated sum.

        Args:
            x: shape (N, ..., in); its rows belong to samples as in `gate_of_rows`. It may be called `input`.
            *args: for PEFT's forward.
            **kwargs: for PEFT's forward.

        Returns:
            Shape (N, ..., out), the dtype of x, or autocast's.
        """
        if x is None:
            x = kwargs.pop("input")  # the name of it in `nn.Linear`, by which AnimateDiff's blocks call
        if not x.shape[0]:
            return self.base_layer(x)
        if not args and not kwargs:
            formed = self._formed(x) if _calls_cost(x) and not torch.is_grad_enabled() else None
            if formed is not None:
                return formed.output(x)
            plain = self._plain()
            operands = None if plain is None else _in_one_dtype(x, plain)
            if operands is not None:
                return self._routed(*operands)
        return super().forward(x, *args, **kwargs)

    def _formed(self, x: Tensor) -> FormedLayer | None:
        """What this layer multiplies with, where that has been formed with others, for this call alone."""
        own = vars(self)
        active = own["_active_adapter"]
        name = active[0] if type(active) is list and len(active) == 1 else active
        variant = own["lora_variant"].get(name) if type(name) is str else None
        if type(variant) is not RoutedLora:
            return None
        ready: dict[int, FormedLayer] | None = variant.gate.shared.get(name)
        formed = ready.get(id(self)) if ready else None
        if ready is None or formed is None:
            return None
        # What a hook within the forward may have changed since; the rest was seen when it was formed.
        changed = own["_disable_adapters"] or own["merged_adapters"] or formed.scale != own["scaling"][name]
        if changed or x.dtype != formed.weight.dtype:
            return None
        return ready.pop(id(self))

    def _routed(self, x: Tensor, plain: _Plain) -> Tensor:
        """The output of a layer that is as this class knows it, all in one dtype."""
        adapter, variant, weight, bias, a, b = plain
        weights = variant.rank_weights(self, adapter, a.size(0), x.shape, x.dtype)
        rows = weights.rows
        if rows is not None:
            if _calls_cost(x) and type(a) is Parameter and len(rows) == 1:
                formed = variant.gate.formed(self, adapter, rows)
                if formed is not None:
                    return formed.output(x)
            if _merging_pays(x, weight, rows.size(0)):
                return _merged(x, weight, bias, a, b, rows)
        if _calls_cost(x) and not _is_busy(x, weight) and not torch.compiler.is_compiling():
            return routed_rows(x, weight, bias, a, b, variant.row_weights(self, adapter, a.size(0), x))
        return routed_linear(x, weight, bias, a, b, weights.each)

    def summands(self, adapter: str) -> Summands | None:
        """What the weight of a step is made of, where this adapter acts alone on an unchanged layer."""
        plain = self._plain()
        if plain is None or plain.adapter != adapter:
            return None
        return Summands(plain.weight, plain.bias, plain.a, plain.b, self.scaling[adapter])

    def _plain(self) -> _Plain | None:
        """What the layer consists of, where all is as this class knows it.

        In small models these look-ups cost as much as the experts' products: they go past properties and
        `nn.Module.__getattr__`, and call little.
        """
        own = vars(self)
        if own["_disable_adapters"] or own["merged_adapters"]:
            return None
        modules, active = own["_modules"], own["_active_adapter"]
        downs = modules["lora_A"]._modules
        names = [active] if type(active) is str else active
        if len(names) != 1:
            names = [name for name in names if name in downs]
        if len(names) != 1:
            return None
        (name,) = names
        variant = own["lora_variant"].get(name)
        if type(variant) is not RoutedLora or own["lora_bias"][name]:
            return None
        if own["training"] and type(modules["lora_dropout"][name]) is not Identity:
            return None
        base = modules["base_layer"]
        weight, a, b = _weight_of(base), _matrix_of(downs[name]), _matrix_of(modules["lora_B"]._modules[name])
        if weight is None or a is None or b is None:
            return None
        return _Plain(name, variant, weight, base._parameters["bias"], a, b)


def _weight_of(part: nn.Module) -> Tensor | None:
    """The weight of a linear layer, where calling the layer is to multiply with it."""
    held = vars(part)
    if (
        type(part) is not Linear
        or held["_forward_hooks"]
        or held["_forward_pre_hooks"]
        or held["_backward_hooks"]
        or held["_backward_pre_hooks"]
        or "forward" in held  # accelerate's hooks replace it
    ):
        return None
    weight: Tensor = held["_parameters"]["weight"]
    # Quantized and sharded weights are tensors of classes of their own, which know few operators.
    return weight if type(weight) is Parameter else None


def _matrix_of(part: nn.Module) -> Tensor | None:
    """Of a LoRA's layer, likewise; where it is made of coordinates, it is formed."""
    if type(part) is SubspaceFactor and not part._forward_hooks and not part._forward_pre_hooks:
        return part.weight
    return _weight_of(part)


def _in_one_dtype(x: Tensor, plain: _Plain) -> tuple[Tensor, _Plain] | None:
    """An input and what multiplies it, cast as autocast would where it is on; None where dtypes still differ."""
    _, _, weight, bias, a, b = plain
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return (x, plain) if x.dtype is weight.dtype is a.dtype is b.dtype else None
    if not {x.dtype, weight.dtype, a.dtype, b.dtype} <= _CAST_BY_AUTOCAST:
        return None
    dtype = torch.get_autocast_dtype(device)
    bias = None if bias is None else bias.to(dtype)
    cast = plain._replace(weight=weight.to(dtype), bias=bias, a=a.to(dtype), b=b.to(dtype))
    return x.to(dtype), cast


def _calls_cost(x: Tensor) -> bool:
    """Whether each call is a kernel's launch, which costs more than the arithmetic of a small layer."""
    return x.is_cuda


def _is_busy(x: Tensor, weight: Tensor) -> bool:
    """Whether a layer's arithmetic takes a GPU longer than the calls take its host: then passes over the input cost."""
    return x.numel() * len(weight) >= (_BUSY_TRAINING if torch.is_grad_enabled() else _BUSY)


def _merging_pays(x: Tensor, weight: Tensor, distinct: int) -> bool:
    """Whether forming so many weights takes less than two thin products for all tokens."""
    width_out, width_in = weight.shape
    saved = x.numel() // width_in * (width_in + width_out) + (_CALLS if distinct == 1 else 0)
    return saved >= _MERGE_FROM * distinct * width_in * width_out


def _merged(x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, rows: Tensor) -> Tensor:
    """The output under one weight for all samples, or one for each: as many as rows of rank weights, (1 or N, E r)."""
    distinct = rows.size(0)
    if distinct == 1:
        return nn.functional.linear(x, torch.addmm(weight, b * rows, a), bias)
    formed = torch.baddbmm(weight.expand(distinct, -1, -1), b * rows[:, None], a.expand(distinct, -1, -1)).mT
    tokens = x.reshape(distinct, -1, x.shape[-1])
    result = torch.bmm(tokens, formed) if bias is None else torch.baddbmm(bias, tokens, formed)
    return result.view(*x.shape[:-1], -1)
