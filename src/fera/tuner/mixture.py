"""Experts of any PEFT scheme: each is PEFT's own layer, and the gate mixes their outputs."""

import copy
from typing import Any

from peft import get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.format import EXPERTS
from fera.tuner.config import FeraConfig
from fera.tuner.gate import FrequencyGate
from fera.tuner.rows import gate_of_rows
from fera.tuner.schemes import why_unsound


class ExpertMixture(nn.Module, BaseTunerLayer):
    r"""A layer whose output is moved towards that of E adapted copies of it, as the gate says.

    .. math:: y = f(x) + \sum_e g_e \bigl(f_e(x) - f(x)\bigr)

    :math:`f` is the base layer and :math:`f_e` the base layer with expert e, as PEFT's layer of the scheme computes
    it; as the gate sums to 1 this is :math:`\sum_e g_e f_e(x)`, but a fresh adapter leaves the output as it is, bit
    for bit. What is mixed are outputs: the one thing that all schemes have, and the same as a gated sum of weight
    deltas wherever a layer is linear in its weight. Each sample has its own gate. It costs E more calls of the base
    layer; experts that are plain LoRAs are computed at the price of one (`fera.tuner.layer`).

    Args:
        base_layer: the layer to adapt; it may be a PEFT layer of another adapter.
        gate: the denoiser's gate.
        part: what the denoiser's class knows the layer's rows by, where they are not samples.
    """

    adapter_layer_names = (EXPERTS,)
    other_param_names = ("adapter_weights",)

    def __init__(self, base_layer: nn.Module, gate: FrequencyGate, part: str | None = None) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.fera_experts = nn.ModuleDict()
        self.adapter_weights: dict[str, float] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self._gate = (gate,)  # in a tuple: not a submodule
        self._part = part

    def add_adapter(self, adapter_name: str, config: FeraConfig, *, low_cpu_mem_usage: bool = False) -> None:
        """Give an adapter its experts, inactive and frozen until it is activated.

        Args:
            adapter_name: the adapter.
            config: its settings, with a scheme for the experts.
            low_cpu_mem_usage: leave the weights on the meta device.

        Raises:
            FeraError: the scheme cannot adapt this layer.
        """
        experts = [
            _build_expert(self.get_base_layer(), adapter_name, config, low_cpu_mem_usage)
            for _ in range(config.num_experts)
        ]
        self.fera_experts[adapter_name] = nn.ModuleList(experts).requires_grad_(False)
        self.adapter_weights[adapter_name] = 1.0

    def forward(self, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor:
        """The base layer's output, moved by the experts of the active adapters.

        Args:
            x: the layer's input, shape (N, ...); its rows belong to samples as in `gate_of_rows`. It may be called
                `input`.
            *args: as the base layer takes them.
            **kwargs: as the base layer takes them.

        Returns:
            Shape and dtype as the base layer's output.

        Raises:
            FeraError: as `gate_of_rows`.
        """
        if x is None:
            x = kwargs.pop("input")  # the name of it in torch's layers, by which AnimateDiff's blocks call
        result: Tensor = self.base_layer(x, *args, **kwargs)
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.fera_experts]
        if not names:
            return result
        base = self.get_base_layer()
        plain = result if self.base_layer is base else base(x, *args, **kwargs)
        for name in names:
            gate = gate_of_rows(self._gate[0], base, name, x.shape, self._part).to(result.dtype)
            gate = gate * self.adapter_weights[name]
            for weight, expert in zip(gate.T, self._experts(name), strict=True):
                difference = expert(x, *args, **kwargs) - plain
                result = result + weight.view(-1, *[1] * (result.ndim - 1)) * difference
        return result

    def _experts(self, adapter_name: str) -> list[Any]:
        experts: Any = self.fera_experts[adapter_name]
        return list(experts)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters; the layers of the experts follow."""
        super().set_adapter(adapter_names, inference_mode)
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        for name in self.fera_experts:
            for expert in self._experts(name):
                expert.set_adapter([name], inference_mode or name not in names)

    def set_scale(self, adapter: str, scale: float) -> None:
        """Weigh an adapter: its experts' differences from the base are multiplied by `scale`."""
        if adapter in self.adapter_weights:
            self.adapter_weights[adapter] = float(scale)

    def scale_layer(self, scale: float) -> None:
        """Multiply the weights of the active adapters, as diffusers does around a call with a scale."""
        for name in self.active_adapters:
            self.set_scale(name, self.adapter_weights.get(name, 1.0) * scale)

    def unscale_layer(self, scale: float | None = None) -> None:
        """Undo `scale_layer`; without a scale, weigh the active adapters with 1 again."""
        for name in self.active_adapters:
            self.set_scale(name, 1.0 if scale is None else self.adapter_weights.get(name, 1.0) / scale)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refused, unless there are no experts left."""
        if self.fera_experts:
            raise FeraError("experts that are mixed by a gate have no single merged weight; keep them unmerged")

    def unmerge(self) -> None:
        """Nothing is merged ever; diffusers asks all layers when it unfuses some."""

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """A routed adapter has no single LoRA."""
        return False


def _build_expert(base: nn.Module, adapter_name: str, config: FeraConfig, low_cpu_mem_usage: bool) -> nn.Module:
    """PEFT's layer of the scheme around a base layer, holding all but the base layer itself."""
    assert config.expert is not None
    scheme: Any = copy.deepcopy(config.expert)
    scheme.target_modules = ["layer"]
    holder = nn.Module()
    holder.layer = base
    kind = f"{scheme.peft_type.value} experts cannot adapt a {type(base).__name__}"
    if reason := why_unsound(scheme, base):
        raise FeraError(f"{kind}: {reason}. Leave it out of target_modules")
    try:
        get_peft_model(holder, scheme, adapter_name, low_cpu_mem_usage=low_cpu_mem_usage)
    except (ValueError, TypeError, NotImplementedError) as error:
        raise FeraError(f"{kind}: {error}. Leave it out of target_modules, or change the scheme's settings") from error
    expert: nn.Module = holder.layer
    if not isinstance(expert, BaseTunerLayer) or "base_layer" not in expert._modules:
        raise FeraError(f"{kind}: PEFT has no layer of this scheme for it. Leave it out of target_modules")
    # All experts share the base layer, and it belongs to the mixture: an ordinary attribute is not a submodule.
    del expert._modules["base_layer"]
    expert.__dict__["base_layer"] = base
    # PEFT and diffusers weigh every tuner layer that they find in a model; here the mixture does it, once.
    for method in ("set_scale", "scale_layer", "unscale_layer"):
        expert.__dict__[method] = _left_to_the_mixture
    return expert


def _left_to_the_mixture(*arguments: Any) -> None:
    """In place of an expert's own scaling."""
