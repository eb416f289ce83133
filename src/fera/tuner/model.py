"""FeRA as a PEFT tuner: experts as one LoRA of rank E·r, gated."""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from peft import PeftConfig
from peft.tuners.lora import LoraModel
from peft.tuners.lora.layer import LoraLayer
from torch import Tensor, nn

from fera.errors import FeraError
from fera.format import EXPERTS, GATE, PEFT_PREFIX, SOFT_PROMPT_KEY, peft_key, stored_key
from fera.models.layers import adaptable, default_targets, listed
from fera.models.soft_prompts import text_states
from fera.tuner.config import FeraConfig
from fera.tuner.fast.linear import RoutedLinear
from fera.tuner.fingerprint import check_fingerprint, fingerprint
from fera.tuner.gate import FrequencyGate
from fera.tuner.guards import check_unfused, guard, unguard
from fera.tuner.layer import no_merge, route_layer
from fera.tuner.mixture import ExpertMixture
from fera.tuner.subspace import confine


class FeraModel(LoraModel):
    """Injects routed experts into a denoiser.

    What `peft.get_peft_model` and `peft.inject_adapter_in_model` build for a `FeraConfig`; the denoiser routes
    itself from then on. Everything that is not about routing is PEFT's LoRA.
    """

    tuner_layer_cls = (LoraLayer, ExpertMixture, FrequencyGate)  # type: ignore[assignment]

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        """Put an adapter into the denoiser, or leave the denoiser as it was.

        Args:
            model: the denoiser.
            adapter_name: the adapter, whose config is in `peft_config`.
            autocast_adapter_dtype: as in PEFT.
            low_cpu_mem_usage: as in PEFT.
            state_dict: as in PEFT; names of a file do too.

        Raises:
            FeraError: the denoiser's class is unknown, it is not the base the config belongs to, a target module
                matches nothing or cannot be routed.
        """
        # A copy: the caller's config may go into another base next.
        config: FeraConfig = copy.copy(self.peft_config[adapter_name])  # type: ignore[assignment]
        self.peft_config[adapter_name] = config
        gate: FrequencyGate | None = getattr(model, GATE, None)
        is_first = gate is None
        if gate is not None and adapter_name in gate.router:
            self.peft_config.pop(adapter_name, None)
            raise FeraError(
                f"the denoiser has a routed adapter {adapter_name!r} already: give another adapter_name, or take it "
                "out first, fera.unload(pipe)"
            )
        try:
            if config.base_fingerprint is None:
                config.base_fingerprint = fingerprint(model)
            else:
                check_fingerprint(model, config.base_fingerprint)
            check_name(adapter_name)
            check_unfused(model)
            _check_targets(model, config)
            gate = gate if gate is not None else FrequencyGate(model)
            gate.add_adapter(adapter_name, config, _device_of(model))
            if config.num_virtual_tokens:
                width = text_states(model).width(model.config)
                gate.add_soft_prompt(adapter_name, config.num_virtual_tokens, width, _device_of(model))
            self._injecting_gate = [gate]  # in a list: not a submodule of the tuner
            self._low_cpu_mem_usage = low_cpu_mem_usage
            super().inject_adapter(
                model,
                adapter_name,
                autocast_adapter_dtype=autocast_adapter_dtype,
                low_cpu_mem_usage=low_cpu_mem_usage,
                state_dict=None if state_dict is None else {peft_key(key): held for key, held in state_dict.items()},
            )
            _leave_eight_bits(model, adapter_name)
            if config.subspace_energy is not None and not config.inference_mode:
                confine(model, adapter_name, config.subspace_energy)
        except Exception:
            self.peft_config.pop(adapter_name, None)
            remove_adapters(model, [adapter_name])
            if gate is not None and is_first:
                gate.remove_hooks()
            raise
        # Attached last: PEFT takes a model that holds a tuner layer for one whose base is frozen already.
        if is_first:
            model.add_module(GATE, gate)
            guard(model, routed_adapters, remove_gate)
        gate.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def unload(self) -> nn.Module:
        """The base model without adapters and routing."""
        model = super().unload()
        remove_gate(model)
        return model

    def merge_and_unload(self, *args: Any, **kwargs: Any) -> nn.Module:
        """The base model with the active adapters merged, where nothing routes their forwards; as in PEFT."""
        model = super().merge_and_unload(*args, **kwargs)
        remove_gate(model)
        return model

    def add_weighted_adapter(self, *args: Any, **kwargs: Any) -> None:
        """Refused: experts of different routers do not add up to one routed adapter."""
        raise FeraError(
            "routed adapters cannot be combined into one; activate them together: "
            "fera.set_adapters(pipe, [...], weights=[...])"
        )

    def _prepare_adapter_config(self, peft_config: FeraConfig, model_config: dict[str, Any]) -> FeraConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = default_targets(self.model)
        return peft_config

    def _create_and_replace(
        self,
        lora_config: FeraConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        *,
        parameter_name: str | None = None,
    ) -> None:
        if lora_config.expert is not None:
            self._mix(lora_config, adapter_name, target, target_name, parent, current_key)
            return
        super()._create_and_replace(
            _stacked(lora_config),
            adapter_name,
            target,
            target_name,
            parent,
            current_key,
            parameter_name=parameter_name,
        )
        if not lora_config.has_gate:
            return  # PEFT's own LoRA
        layer = getattr(parent, target_name)
        route_layer(layer, current_key, adapter_name, self._injecting_gate[0], lora_config.num_experts)

    @staticmethod
    def _create_new_module(lora_config: FeraConfig, adapter_name: str, target: nn.Module, **kwargs: Any) -> nn.Module:
        # A weight of another class is quantized, and PEFT may have a layer for that.
        is_plain = type(target) is nn.Linear and type(target.weight) is nn.Parameter
        if is_plain and not lora_config.fan_in_fan_out:
            return RoutedLinear(target, adapter_name, config=lora_config, **kwargs)
        return LoraModel._create_new_module(lora_config, adapter_name, target, **kwargs)

    def _mix(
        self, config: FeraConfig, adapter_name: str, target: nn.Module, name: str, parent: nn.Module, key: str
    ) -> None:
        """Give a layer experts of another scheme than LoRA."""
        gate = self._injecting_gate[0]
        mixture = target if isinstance(target, ExpertMixture) else ExpertMixture(target, gate, gate.part_of(key))
        try:
            mixture.add_adapter(adapter_name, config, low_cpu_mem_usage=self._low_cpu_mem_usage)
        except FeraError as error:
            raise FeraError(f"{key}: {error}") from error
        mixture.train(target.training)
        setattr(parent, name, mixture)

    def _check_merge_allowed(self) -> None:
        configs = adapter_configs(self)
        if routed := [name for name in self.active_adapters if not getattr(configs.get(name), "is_one_lora", False)]:
            raise no_merge(", ".join(routed))

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: FeraConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        # PEFT has taken all keys with another adapter's name in them out of `state_dict`: with an adapter called "0"
        # that is `to_out.0` too.
        own = adapter_tensors(model, adapter_name)
        return {key: state_dict.get(key, tensor) for key, tensor in own.items()}

    @classmethod
    def _remove_adapter_name_from_key(cls, key: str, adapter_name: str) -> str:
        # PEFT expects an adapter's name next to the end of a key; a router's lies before its layers.
        if _is_router_key(key):
            return key.replace(f"{GATE}.router.{adapter_name}.", f"{GATE}.router.", 1)
        if f".{SOFT_PROMPT_KEY}." in f".{key}":
            return key.removesuffix(f".{adapter_name}")
        if f".{EXPERTS}." in key:
            layer, _, expert = key.partition(f".{EXPERTS}.")
            own = super()._remove_adapter_name_from_key(expert.removeprefix(f"{adapter_name}."), adapter_name)
            return f"{layer}.{EXPERTS}.{own}"
        return stored_key(super()._remove_adapter_name_from_key(key, adapter_name))

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: FeraConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        # PEFT goes from the model's names to the file's, by the method above; files of format version 1 had others.
        stored = {stored_key(key): tensor for key, tensor in state_dict.items()}
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, stored)
        _check_tensors(model, adapter_name, remapped)
        return remapped


def remove_adapters(model: nn.Module, adapter_names: Sequence[str]) -> None:
    """Take adapters out of a denoiser; layers and the gate that are left without any go too.

    Args:
        model: the denoiser.
        adapter_names: names of the adapters, those it does not hold are passed over.
    """
    for name, module in list(model.named_modules()):
        # What is inside a mixture goes with it.
        if not isinstance(module, LoraLayer | ExpertMixture | FrequencyGate) or f".{EXPERTS}." in name:
            continue
        remaining = [adapter for adapter in module._all_available_adapter_names() if adapter not in adapter_names]
        active = [adapter for adapter in module.active_adapters if adapter in remaining]
        module.set_adapter(active)  # first, so that deleting needs not choose another
        for adapter in adapter_names:
            module.delete_adapter(adapter)
        if not isinstance(module, FrequencyGate) and not remaining:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, module.base_layer)
    gate = getattr(model, GATE, None)
    if gate is not None and not gate.router:
        remove_gate(model)
    for adapter in adapter_names:
        adapter_configs(model).pop(adapter, None)
    if "peft_config" in vars(model) and not adapter_configs(model):
        del model.peft_config  # left behind, it makes PEFT warn of adapters that are gone


def adapter_configs(model: nn.Module) -> dict[str, PeftConfig]:
    """Configs of the adapters in a model by their names, routed or plain."""
    configs: Any = getattr(model, "peft_config", {})
    return configs


def adapter_tensors(model: nn.Module, adapter_name: str) -> dict[str, Tensor]:
    """Weights of a routed adapter by their keys in `model.state_dict()`: of experts, router and soft prompt."""
    tensors: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        # What is inside a mixture is listed with it.
        if not isinstance(module, LoraLayer | ExpertMixture | FrequencyGate) or f".{EXPERTS}." in path:
            continue
        for part in module.adapter_layer_names:
            held = getattr(module, part, None)
            if isinstance(held, nn.ParameterDict) and adapter_name in held:
                tensors[f"{path}.{part}.{adapter_name}"] = held[adapter_name].detach()
            elif isinstance(held, nn.ModuleDict) and adapter_name in held:
                tensors |= held[adapter_name].state_dict(prefix=f"{path}.{part}.{adapter_name}.")
    return tensors


def routed_adapters(model: nn.Module) -> list[str]:
    """Names of a denoiser's routed adapters."""
    return [name for name, config in adapter_configs(model).items() if isinstance(config, FeraConfig)]


def gate_of(model: nn.Module) -> FrequencyGate | None:
    """The gate of a denoiser, which may be inside a wrapper; None where nothing is routed."""
    gate = getattr(model, GATE, None)
    if isinstance(gate, FrequencyGate):
        return gate  # without a walk over all modules, which takes a percent of a training step
    return next((module for module in model.modules() if isinstance(module, FrequencyGate)), None)


def remove_gate(model: nn.Module) -> None:
    """Stop routing a denoiser."""
    gate = getattr(model, GATE, None)
    if gate is not None:
        unguard(model)
        gate.remove_hooks()
        delattr(model, GATE)


def _stacked(config: FeraConfig) -> FeraConfig:
    """The config of the one LoRA that holds all experts, at the scale of a single one."""
    experts = config.num_experts
    # PEFT divides alpha by the rank, or by its root: multiplying both keeps an expert's scale, which a gate weighs.
    growth = (math.sqrt(experts) if config.use_rslora else experts) if config.has_gate else 1
    assert config.lora_alpha is not None  # the config has filled it in
    stacked = copy.copy(config)
    stacked.r = sum(config.expert_ranks)
    stacked.lora_alpha = config.lora_alpha * growth
    stacked.rank_pattern = {key: rank * experts for key, rank in (config.rank_pattern or {}).items()}
    stacked.alpha_pattern = {key: alpha * growth for key, alpha in (config.alpha_pattern or {}).items()}
    return stacked


def check_name(adapter_name: str) -> None:
    """Refuse what cannot name an adapter: it is an entry of module dictionaries, which no attribute's name can be.

    Raises:
        FeraError: it is empty, has dots in it, or is an attribute of torch's modules.
    """
    if not adapter_name or "." in adapter_name:
        raise FeraError(f"adapter_name must be a name without dots, got {adapter_name!r}")
    if hasattr(nn.ModuleDict(), adapter_name):
        raise FeraError(f"adapter_name cannot be {adapter_name!r}, which torch's modules need themselves; take another")


def _leave_eight_bits(model: nn.Module, adapter_name: str) -> None:
    """Give new experts the dtype their layer computes in: PEFT gives them that in which a base may be kept, 8 bits."""
    for layer in model.modules():
        if not isinstance(layer, LoraLayer) or adapter_name not in layer.lora_A:
            continue
        base: Any = layer.get_base_layer()
        if base.weight.is_floating_point() and base.weight.element_size() == 1:
            registry: Any = getattr(base, "_diffusers_hook", None)
            hook = None if registry is None else registry.get_hook("layerwise_casting")
            dtype = torch.float32 if hook is None else hook.compute_dtype
            layer.lora_A[adapter_name].to(dtype)
            layer.lora_B[adapter_name].to(dtype)


def _check_targets(model: nn.Module, config: FeraConfig) -> None:
    """Every listed target must exist: PEFT is silent about one of several that does not."""
    targets = config.target_modules
    if targets is None or isinstance(targets, str):
        return
    names = [name.replace(".base_layer", "") for name, _ in model.named_modules()]
    missing = sorted(
        target for target in targets if not any(name == target or name.endswith(f".{target}") for name in names)
    )
    if missing:
        raise FeraError(
            f"target_modules that match nothing in {type(model).__name__}: {', '.join(missing)}. "
            f"Layers it has: {listed(adaptable(model))}"
        )


def _check_tensors(model: nn.Module, adapter_name: str, state_dict: dict[str, Tensor]) -> None:
    """A file must hold every tensor of the adapter in the shape it has here: PEFT loads what there is."""
    given = {key.removeprefix(PEFT_PREFIX): tensor for key, tensor in state_dict.items()}
    for key, tensor in adapter_tensors(model, adapter_name).items():
        plain = key.removeprefix(PEFT_PREFIX)
        where = FeraModel._remove_adapter_name_from_key(plain, adapter_name)
        if plain not in given:
            raise FeraError(f"the adapter's file has no tensor {where}: it is incomplete, or from another base")
        if given[plain].shape != tensor.shape:
            raise FeraError(
                f"the adapter's tensor {where} has shape {tuple(given[plain].shape)}, this base and config need "
                f"{tuple(tensor.shape)}: it belongs to another base, or its config was changed"
            )


def _is_router_key(key: str) -> bool:
    return f".{GATE}.router." in f".{key}"


def _device_of(model: nn.Module) -> torch.device:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    return torch.device("cpu") if device.type == "meta" else device
