"""The routed layer of a plain `nn.Linear`: what PEFT's layer computes, in fewer and smaller steps."""

from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn

from fera.tuner.layer import RoutedLora
from fera.tuner.product import routed_linear

# Measured on a CPU: what a merged weight must save in multiplications for each of its entries, since it is also written
# and read, and what the fewer calls are worth.
_MERGE_FROM = 1.25
_CALLS = 2**16

# Weights up to this size are formed together with others where calls are what costs: larger ones keep a GPU busy.
_SMALL = 2**22

# Autocast leaves other dtypes as they are.
_CAST_BY_AUTOCAST = {torch.float32, torch.float16, torch.bfloat16}


class Operands(NamedTuple):
    """What a plain routed layer multiplies, all in one dtype."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    lora_a: Tensor
    lora_b: Tensor


class RoutedLinear(LoraLinear):
    r"""PEFT's LoRA layer, with short cuts where one routed adapter acts alone on an unchanged `nn.Linear`.

    The experts' sum is added by the product that computes it instead of in a pass of its own (`routed_linear`). Where
    nothing trains and the multiplications are fewer, the weight of the step is formed first,

    .. math:: W + B \operatorname{diag}(g \otimes 1_r) A,

    once for all samples whose gates are equal (the halves of classifier-free guidance see one latent), else, on a CPU,
    once a sample; on a GPU small layers' weights are formed together (`StepWeights`). In half precision the weight is
    rounded once more and the output once less. Under autocast, inputs and weights are cast once, to its dtype: PEFT's
    layer casts the input there and back. Everything else is left to PEFT's forward and its call of `RoutedLora`.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output and the experts' gated sum.

        Args:
            x: shape (N, ..., in), where N is a multiple of the latent's batch.
            *args: for PEFT's forward.
            **kwargs: for PEFT's forward.

        Returns:
            Shape (N, ..., out), the dtype of x, or autocast's.
        """
        adapter = None if args or kwargs else self._sole_adapter()
        operands = None if adapter is None else self._plain_operands(adapter, x)
        if adapter is None or operands is None:
            return super().forward(x, *args, **kwargs)
        variant = self.lora_variant[adapter]
        assert isinstance(variant, RoutedLora)  # for the type checker
        x, weight, bias, lora_a, lora_b = operands
        weights = variant.rank_weights(self, adapter, lora_a.shape[0], x.shape[0], x.dtype)
        rows = weights.distinct
        if rows is not None and len(rows) == 1 and _forms_together(x, weight, lora_a):
            formed = variant.gate.step_weights.take(self, adapter, rows, variant.gate.shared)
            if formed is not None:
                return nn.functional.linear(x, formed, bias)
        if rows is not None and _merging_pays(x, weight, len(rows)):
            return _merged(x, weight, bias, lora_a, lora_b, rows)
        return routed_linear(x, weight, bias, lora_a, lora_b, weights.each)

    def summands(self, adapter: str) -> tuple[Any, Any, Any, float]:
        """The layer of W, that of A, that of B, and the scale of the experts."""
        modules = vars(self)["_modules"]
        return modules["base_layer"], modules["lora_A"][adapter], modules["lora_B"][adapter], self.scaling[adapter]

    # In small models these look-ups cost as much as the experts' products: they go past `nn.Module.__getattr__`.

    def _sole_adapter(self) -> str | None:
        """The one active adapter, where it is routed and nothing is switched that this class does not know."""
        if self._disable_adapters or self.merged_adapters:
            return None
        held = vars(self)["_modules"]["lora_A"]
        active = [name for name in self.active_adapters if name in held]
        if len(active) != 1:
            return None
        name = active[0]
        if not isinstance(self.lora_variant.get(name), RoutedLora):
            return None
        drops = self.training and not isinstance(self.lora_dropout[name], nn.Identity)
        return None if drops or self.lora_bias[name] else name

    def _plain_operands(self, adapter: str, x: Tensor) -> Operands | None:
        """What is multiplied, in one dtype, unless one of the three layers is more than a plain product."""
        modules = vars(self)["_modules"]
        base = modules["base_layer"]
        weight, lora_a, lora_b = (
            _weight(layer) for layer in (base, modules["lora_A"][adapter], modules["lora_B"][adapter])
        )
        if weight is None or lora_a is None or lora_b is None:
            return None
        bias = vars(base)["_parameters"]["bias"]
        if not torch.is_autocast_enabled(x.device.type):
            same = x.dtype == weight.dtype == lora_a.dtype == lora_b.dtype
            return Operands(x, weight, bias, lora_a, lora_b) if same else None
        if not {x.dtype, weight.dtype, lora_a.dtype, lora_b.dtype} <= _CAST_BY_AUTOCAST:
            return None
        dtype = torch.get_autocast_dtype(x.device.type)
        bias = None if bias is None else bias.to(dtype)
        return Operands(x.to(dtype), weight.to(dtype), bias, lora_a.to(dtype), lora_b.to(dtype))


def _weight(module: nn.Module) -> Tensor | None:
    """The weight of a linear layer whose call nobody watches or replaces, else None."""
    own = vars(module)
    watched = own["_forward_hooks"] or own["_forward_pre_hooks"] or own["_backward_hooks"] or own["_backward_pre_hooks"]
    if type(module) is not nn.Linear or watched or "forward" in own:  # accelerate's hooks replace the forward
        return None
    weight = own["_parameters"]["weight"]
    # Quantized and sharded weights are tensors of classes of their own, which know few operators.
    return weight if type(weight) is nn.Parameter else None


def _forms_together(x: Tensor, weight: Tensor, lora_a: Tensor) -> bool:
    """Whether calls are what a layer costs, and its weights are used as they are, not cast by autocast."""
    return _calls_cost(x) and weight.numel() <= _SMALL and type(lora_a) is nn.Parameter


def _calls_cost(x: Tensor) -> bool:
    """Whether each call is a kernel's launch, which costs more than the arithmetic of a small layer."""
    return x.is_cuda


def _merging_pays(x: Tensor, weight: Tensor, distinct: int) -> bool:
    """Whether forming so many weights takes less than two thin products for all tokens."""
    tokens = x.numel() // x.shape[-1]
    return tokens * sum(weight.shape) + _CALLS >= _MERGE_FROM * distinct * weight.numel()


def _merged(x: Tensor, weight: Tensor, bias: Tensor | None, lora_a: Tensor, lora_b: Tensor, gated: Tensor) -> Tensor:
    """The output under one weight for all samples, or one for each: as many as rows of rank weights, (1 or N, E r)."""
    if len(gated) == 1:
        return nn.functional.linear(x, torch.addmm(weight, lora_b * gated, lora_a), bias)
    count = len(gated)
    formed = torch.baddbmm(weight.expand(count, -1, -1), lora_b * gated[:, None], lora_a.expand(count, -1, -1)).mT
    rows = x.reshape(count, -1, x.shape[-1])
    result = torch.bmm(rows, formed) if bias is None else torch.baddbmm(bias, rows, formed)
    return result.view(*x.shape[:-1], -1)
