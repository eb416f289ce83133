"""Adapters on a diffusers pipeline: load, save, activate, trace, unload.

The pipeline stays as it is; its denoiser gets the experts and routes itself.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft import PeftModel, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fera.checkpoint import open_adapter, write_adapter
from fera.denoisers import is_known
from fera.errors import FeraError
from fera.tuner import FeraConfig, FrequencyGate, Routing
from fera.tuner.model import adapter_configs, remove_adapters

# A diffusers pipeline, or a denoiser, or a PeftModel around one.
Target = Any


def denoisers(target: Target) -> dict[str, nn.Module]:
    """Denoisers that fera knows in a pipeline, by component name.

    Args:
        target: a pipeline; a denoiser or a PeftModel around one counts as the single component "denoiser".

    Raises:
        FeraError: there is none.
    """
    if isinstance(target, PeftModel):
        target = target.get_base_model()
    if isinstance(target, nn.Module):
        return {"denoiser": target}
    components = getattr(target, "components", None)
    if not isinstance(components, dict):
        raise FeraError(f"expected a diffusers pipeline or a denoiser, got a {type(target).__name__}")
    found = {name: module for name, module in components.items() if is_known(module)}
    if not found:
        have = ", ".join(f"{name} ({type(value).__name__})" for name, value in components.items() if value is not None)
        raise FeraError(
            f"fera knows none of this {type(target).__name__}'s components as a denoiser: {have}. "
            "For a denoiser of your own, call fera.register_denoiser first"
        )
    return found


def load_adapter(
    pipe: Target,
    path: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    component: str | None = None,
    allow_other_base: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> None:
    """Load an adapter into a pipeline and make it the active one.

    Args:
        pipe: a diffusers pipeline (or a denoiser).
        path: an adapter folder, a run folder of `fera train`, one safetensors file, or a Hub id.
        adapter_name: what to call it here; without dots.
        component: name of the denoiser it belongs to, where the pipeline has two of one class.
        allow_other_base: load it although the base's weights are not those it was trained on; the architecture
            must fit all the same.
        revision: branch, tag or commit, for a Hub id.
        token: access token, for a Hub id.

    Raises:
        FeraError: no adapter is there, it belongs to another base, or the name is taken. The pipeline is unchanged.
    """
    file = open_adapter(path, revision=revision, token=token)
    name, denoiser = _component_for(pipe, file.config, component)
    if not adapter_name or "." in adapter_name:
        raise FeraError(f"adapter_name must be a name without dots, got {adapter_name!r}")
    if adapter_name in adapter_configs(denoiser):
        raise FeraError(f"{name} already has an adapter {adapter_name!r}; choose another adapter_name, or unload it")
    config = file.config
    config.inference_mode = True
    if allow_other_base:
        config.base_fingerprint = None
    try:
        with warnings.catch_warnings():
            # Several adapters on one model are meant here.
            warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
            inject_adapter_in_model(config, denoiser, adapter_name)
        set_peft_model_state_dict(denoiser, file.tensors(), adapter_name)
    except FeraError as error:
        remove_adapters(denoiser, [adapter_name])
        raise FeraError(f"cannot load {path} into {name}: {error}") from error
    except Exception:
        remove_adapters(denoiser, [adapter_name])
        raise
    # Fresh layers are in training mode, where dropout acts.
    denoiser.train(denoiser.training)
    _tell_diffusers(denoiser)


def save_adapter(pipe: Target, path: str | os.PathLike[str], *, adapter_name: str = "default") -> None:
    """Save an adapter of a pipeline as a folder that `load_adapter` and `PeftModel.from_pretrained` read.

    Args:
        pipe: a diffusers pipeline, a denoiser or a PeftModel.
        path: the folder, made if missing.
        adapter_name: the adapter.

    Raises:
        FeraError: there is no such adapter, or the folder cannot be written.
    """
    holders = [module for module in denoisers(pipe).values() if adapter_name in adapter_configs(module)]
    if not holders:
        raise FeraError(f"no adapter {adapter_name!r} to save; there are: {_listing(adapters(pipe))}")
    config = adapter_configs(holders[0])[adapter_name]
    if isinstance(config, FeraConfig) and config.base_model_name_or_path is None:
        config.base_model_name_or_path = str(getattr(pipe, "name_or_path", None) or "") or None
    write_adapter(holders[0], path, adapter_name)


def adapters(pipe: Target) -> list[str]:
    """Names of the adapters in a pipeline's denoisers, routed or plain."""
    names: dict[str, None] = {}
    for denoiser in denoisers(pipe).values():
        names.update(dict.fromkeys(adapter_configs(denoiser)))
    return list(names)


def set_adapters(pipe: Target, names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
    """Activate adapters, and weigh them; the others go to sleep.

    Args:
        pipe: a diffusers pipeline, a denoiser or a PeftModel.
        names: adapters to activate, routed or plain; none for the base model alone.
        weights: one for all, or one each; 1 when left out. A weight scales an adapter's experts, not its gate.

    Raises:
        FeraError: an unknown name, or not as many weights as names.
    """
    names = [names] if isinstance(names, str) else list(names)
    if weights is None or isinstance(weights, int | float):
        weights = [1.0 if weights is None else float(weights)] * len(names)
    if len(weights) != len(names):
        raise FeraError(f"got {len(weights)} weights for {len(names)} adapters: {', '.join(names)}")
    available = adapters(pipe)
    if unknown := [name for name in names if name not in available]:
        raise FeraError(f"unknown adapter: {', '.join(unknown)}; there are: {_listing(available)}")
    for denoiser in denoisers(pipe).values():
        config = adapter_configs(denoiser)
        own = {name: weight for name, weight in zip(names, weights, strict=True) if name in config}
        frozen = all(config[name].inference_mode for name in own)
        for module in denoiser.modules():
            if isinstance(module, BaseTunerLayer):
                module.set_adapter(list(own), inference_mode=frozen)
                for name, weight in own.items():
                    set_scale: Any = module.set_scale
                    set_scale(name, weight)


@contextmanager
def trace(target: Target) -> Iterator[list[Routing]]:
    """Record how every forward inside the block is routed.

    Args:
        target: a diffusers pipeline, a denoiser or a PeftModel that holds a FeRA adapter.

    Yields:
        A list that grows by one `Routing` a forward and adapter: `.adapter`, `.timestep`, `.indicator` (B, K) and
        `.gates` (B, E), on the CPU. With guidance in one doubled call, B is twice the number of images.

    Raises:
        FeraError: nothing in it is routed.
    """
    modules = [module for denoiser in denoisers(target).values() for module in denoiser.modules()]
    gates = [module for module in modules if isinstance(module, FrequencyGate)]
    if not gates:
        raise FeraError("nothing to trace: there is no FeRA adapter here; load one with fera.load_adapter")
    routings: list[Routing] = []
    for gate in gates:
        gate.start_trace(routings)
    try:
        yield routings
    finally:
        for gate in gates:
            gate.stop_trace(routings)


def unload(pipe: Target, adapter_name: str | None = None) -> None:
    """Take FeRA adapters out of a pipeline; plain adapters stay.

    Args:
        pipe: a diffusers pipeline or a denoiser.
        adapter_name: the adapter; all routed ones when left out.

    Raises:
        FeraError: there is no such routed adapter.
    """
    found = False
    for denoiser in denoisers(pipe).values():
        routed = [
            name
            for name, config in adapter_configs(denoiser).items()
            if isinstance(config, FeraConfig) and adapter_name in (None, name)
        ]
        found = found or bool(routed)
        remove_adapters(denoiser, routed)
        _tell_diffusers(denoiser)
    if adapter_name is not None and not found:
        raise FeraError(f"no FeRA adapter {adapter_name!r} to unload; there are: {_listing(adapters(pipe))}")


def _component_for(pipe: Target, config: FeraConfig, component: str | None) -> tuple[str, nn.Module]:
    candidates = denoisers(pipe)
    if component is not None:
        if component not in candidates:
            raise FeraError(f"no denoiser {component!r} in this pipeline; there are: {_listing(candidates)}")
        return component, candidates[component]
    wanted = (config.base_fingerprint or {}).get("class")
    fitting = [item for item in candidates.items() if wanted in (None, type(item[1]).__name__)]
    # None fits: the check of the base says better why.
    return fitting[0] if fitting else next(iter(candidates.items()))


def _tell_diffusers(denoiser: nn.Module) -> None:
    """Diffusers' own adapter methods ask this flag whether there is anything to do."""
    if hasattr(denoiser, "_hf_peft_config_loaded"):
        setattr(denoiser, "_hf_peft_config_loaded", bool(adapter_configs(denoiser)))  # noqa: B010


def _listing(names: Any) -> str:
    return ", ".join(names) or "none"
