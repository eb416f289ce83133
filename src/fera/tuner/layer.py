"""The routed LoRA layer: PEFT's own, with its rank axis gated."""

from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer, LoraVariant, _ConvNd
from torch import Tensor, nn

from fera.errors import FeraError
from fera.tuner.gate import FrequencyGate
from fera.tuner.rows import gate_of_rows

# Layers of PEFT that hand their forward to a variant. Classes by name exist only where bitsandbytes does.
_ROUTABLE = (LoraLinear, _ConvNd)
_ROUTABLE_NAMES = ("Linear8bitLt", "Linear4bit")


def route_layer(layer: nn.Module, name: str, adapter_name: str, gate: FrequencyGate, num_experts: int) -> None:
    """Put the ranks of one adapter in a LoRA layer under the gate.

    Args:
        layer: the LoRA layer that holds the adapter, with `num_experts` times an expert's rank.
        name: where it is in the denoiser, for the error.
        adapter_name: the adapter.
        gate: the denoiser's gate.
        num_experts: E.

    Raises:
        FeraError: PEFT's layer for this kind of module cannot be gated.
    """
    assert isinstance(layer, LoraLayer)
    if not isinstance(layer, _ROUTABLE) and type(layer).__name__ not in _ROUTABLE_NAMES:
        base = type(layer.get_base_layer()).__name__
        raise FeraError(f"{name} is a {base}, whose LoRA layer cannot be routed; leave it out of target_modules")
    layer.lora_variant[adapter_name] = RoutedLora(gate, num_experts, gate.part_of(name))


class RankWeights(NamedTuple):
    """The weights of an adapter's ranks in one forward.

    Args:
        each: shape (N, 1, E r).
        rows: the first row where all are equal, shape (1, E r), else all of them, shape (N, E r); None where no weight
            is formed from them: they are trained, or traced by the compiler.
    """

    each: Tensor
    rows: Tensor | None


class RoutedLora(LoraVariant):
    r"""LoRA whose ranks are weighted by the gate of the expert they belong to.

    .. math:: \sum_e g_e B_e A_e x = B \bigl((g \otimes 1_r) \odot (A x)\bigr)

    with the experts' matrices stacked: :math:`A` is (E r, in), :math:`B` is (out, E r). No expert's output is ever
    formed. PEFT's interface for variants asks for an object per layer and adapter.

    Args:
        gate: the denoiser's gate.
        num_experts: E.
        part: what the denoiser's class knows the layer's rows by, where they are not samples.
    """

    def __init__(self, gate: FrequencyGate, num_experts: int, part: str | None = None) -> None:
        self.gate = gate
        self.num_experts = num_experts
        self.part = part

    def supports_lora_conversion(self) -> bool:
        """A routed adapter has no single LoRA."""
        return False

    def forward(  # type: ignore[override]
        self, module: LoraLayer, active_adapter: str, x: Tensor, result: Tensor, **kwargs: Any
    ) -> Tensor:
        """Add the experts' gated sum to the base layer's output.

        Args:
            module: the LoRA layer.
            active_adapter: name of the adapter.
            x: the layer's input, in the adapter's dtype, shape (N, ..., in) or (N, in, H, W); its rows belong to
                samples as in `gate_of_rows`.
            result: output of the base layer.
            **kwargs: what other variants of PEFT use.

        Returns:
            Shape and dtype as adding a LoRA would give.

        Raises:
            FeraError: as `gate_of_rows`.
        """
        lora_a, lora_b = module.lora_A[active_adapter], module.lora_B[active_adapter]
        ranks = lora_a(module.lora_dropout[active_adapter](x))
        axis = 1 if isinstance(module, _ConvNd) else ranks.ndim - 1
        weights = self.rank_weights(module, active_adapter, ranks.shape[axis], x.shape, ranks.dtype).each
        shape = [1] * ranks.ndim
        shape[0], shape[axis] = len(weights), weights.shape[-1]
        return result + lora_b(ranks * weights.view(shape))

    def rank_weights(
        self, module: LoraLayer, adapter: str, width: int, shape: Sequence[int], dtype: torch.dtype
    ) -> RankWeights:
        """Each rank's weight for each row of a layer's input, the gate times the scale.

        Args:
            module: the LoRA layer.
            adapter: name of the adapter.
            width: E r, a multiple of the number of experts.
            shape: the shape of the input, (N, ...).
            dtype: the dtype of the ranks.

        Returns:
            The same for all layers that ask alike in a forward.

        Raises:
            FeraError: as `forward`.
        """
        # The same for most layers of a forward, and in small models a good part of an adapted layer's time.
        scale, shared = module.scaling[adapter], self.gate.shared
        key = (adapter, width, *self._kind(shape), scale, dtype, torch.is_grad_enabled())
        if key not in shared:
            gate = gate_of_rows(self.gate, module.get_base_layer(), adapter, shape, self.part)
            each = (gate.to(dtype) * scale).repeat_interleave(width // self.num_experts, dim=1)
            shared[key] = RankWeights(each[:, None], self._rows(adapter, each))
        return shared[key]

    def row_weights(self, module: LoraLayer, adapter: str, width: int, x: Tensor) -> Tensor:
        """Each rank's weight for each row of a layer's input.

        Args:
            module: the LoRA layer.
            adapter: name of the adapter.
            width: E r, a multiple of the number of experts.
            x: the input, shape (N, ..., in), in the dtype of the ranks.

        Returns:
            Shape (rows, E r).

        Raises:
            FeraError: as `forward`.
        """
        tokens = x.shape[1:-1].numel()
        shared = self.gate.shared
        key = (adapter, width, tokens, *self._kind(x.shape), module.scaling[adapter], x.dtype, torch.is_grad_enabled())
        if key not in shared:
            each = self.rank_weights(module, adapter, width, x.shape, x.dtype).each
            shared[key] = each.expand(-1, tokens, -1).flatten(0, 1)
        weights: Tensor = shared[key]
        return weights

    def _kind(self, shape: Sequence[int]) -> tuple[Hashable, ...]:
        """What decides which rows of a layer's input belong to which sample."""
        return shape[0], len(shape) > 2, self.part

    def _rows(self, adapter: str, each: Tensor) -> Tensor | None:
        """What `RankWeights.rows` holds for these weights."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return None
        return each[:1] if self.gate.is_one(adapter) else each

    @staticmethod
    def merge_safe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Always refused."""
        raise no_merge(active_adapter)

    @staticmethod
    def merge_unsafe(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> None:
        """Always refused."""
        raise no_merge(active_adapter)

    @staticmethod
    def unmerge(module: LoraLayer, active_adapter: str, orig_weight: Tensor) -> Tensor:
        """Always refused."""
        raise no_merge(active_adapter)


def no_merge(adapter: str) -> FeraError:
    """The error for merging a routed adapter."""
    return FeraError(
        f"adapter {adapter!r} is routed: its experts are mixed anew at every step, so no single merged weight exists. "
        "Keep it unmerged, which costs what a LoRA of the same rank costs, or merge one mixture for good: "
        'fera.merge(pipe, gate=...), with "uniform", one weight an expert, or a recorded trace'
    )
