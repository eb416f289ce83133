"""Adapters on a diffusers pipeline: load, save, activate, trace, unload.

The pipeline stays as it is; its denoiser, or each of its two, gets the experts and routes itself. What an adapter has
in the text encoders, `fera.text`, goes with it by its name.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from peft import inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fera.adapters.checks import check_layers
from fera.adapters.file import AdapterFile, write_adapter
from fera.adapters.text.files import TextFiles, file_names, write_text
from fera.adapters.text.parts import activate_text, check_text, put_text, remove_text, swap_text, text_of
from fera.errors import FeraError
from fera.format import EXPERTS, PEFT_PREFIX, WEIGHTS
from fera.method.routing import Routing
from fera.models.components import BARE, Target, denoisers
from fera.pipelines.hotswap import swap_adapters
from fera.pipelines.offloading import weights_in_place
from fera.pipelines.opening import open_components
from fera.pipelines.plain_loras import is_plain_lora, put_plain_lora
from fera.tuner import FeraConfig
from fera.tuner.fingerprint import check_fingerprint
from fera.tuner.guards import check_unfused
from fera.tuner.model import adapter_configs, check_name, gate_of, remove_adapters
from fera.tuner.schedulers import SchedulerOf


def load_adapter(
    pipe: Target,
    path: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    component: str | None = None,
    allow_other_base: bool = False,
    hotswap: bool = False,
    revision: str | None = None,
    token: str | None = None,
) -> None:
    """Load an adapter into a pipeline and make it the active one.

    A plain LoRA too, in the naming of diffusers, PEFT, kohya or ComfyUI: diffusers or PEFT reads it, and what of it has
    no place in the pipeline is an error. `set_adapters` then weighs it beside routed ones.

    Args:
        pipe: a diffusers pipeline (or a denoiser).
        path: an adapter folder, a run folder of `fera train`, one safetensors file, or the Hub id of a routed adapter;
            a file or folder of a plain LoRA. A folder that
            `save_adapter` wrote for two denoisers loads into both, as far as the pipeline has them. An adapter's parts
            in the text encoders go into the pipeline's; a bare denoiser gets its own part alone.
        adapter_name: what to call it here; without dots.
        component: name of the denoiser to load into, instead of the one that the adapter names; of a folder for two,
            the one to load.
        allow_other_base: load it although the base's weights are not those it was trained on; the architecture
            must fit all the same.
        hotswap: replace the weights of the adapter that has this name, of the same settings and shapes, in place: a
            compiled denoiser is not compiled again. The adapter keeps its weight and whether it is active.
        revision: branch, tag or commit, for a Hub id.
        token: access token, for a Hub id.

    Raises:
        FeraError: no adapter is there, it belongs to another base or could belong to several denoisers, or the name
            is taken; with `hotswap`, there is none to replace, or it differs in more than its weights. The pipeline is
            unchanged.
    """
    check_name(adapter_name)
    if is_plain_lora(path):
        if hotswap:
            raise FeraError(f"{path} is a plain LoRA, and hotswap=True replaces the weights of a routed adapter")
        return _load_plain(pipe, path, adapter_name, component)
    with weights_in_place(pipe):  # also to tell by its weights which of two denoisers an adapter belongs to
        files = open_components(pipe, path, component=component, revision=revision, token=token)
        _load(pipe, files, adapter_name, allow_other_base, hotswap)


def save_adapter(pipe: Target, path: str | os.PathLike[str], *, adapter_name: str = "default") -> None:
    """Save an adapter of a pipeline as a folder that `load_adapter` and `PeftModel.from_pretrained` read.

    Where two denoisers of the pipeline hold an adapter of this name, each gets a folder of its own inside `path`, named
    like the denoiser; `load_adapter` reads `path`, `PeftModel.from_pretrained` either of them.

    Args:
        pipe: a diffusers pipeline, a denoiser or a PeftModel.
        path: the folder, made if missing.
        adapter_name: the adapter.

    Raises:
        FeraError: there is no such adapter, or the folder cannot be written.
    """
    holders = {name: module for name, module in denoisers(pipe).items() if adapter_name in adapter_configs(module)}
    if not holders:
        raise FeraError(f"no adapter {adapter_name!r} to save; there are: {_listing(adapters(pipe))}")
    routed = {name: module for name, module in holders.items() if _is_routed(module, adapter_name)}
    if len(routed) > 1 and (Path(path) / WEIGHTS).exists():
        raise FeraError(
            f"{path} holds the adapter of a single denoiser, not of {_listing(routed)}: save to another folder"
        )
    with weights_in_place(pipe):
        _save(pipe, path, adapter_name, holders, routed)


def _save(
    pipe: Target,
    path: str | os.PathLike[str],
    adapter_name: str,
    holders: Mapping[str, nn.Module],
    routed: Mapping[str, nn.Module],
) -> None:
    loras, token = text_of(pipe, adapter_name) if len(routed) == 1 else ({}, None)
    for name, denoiser in (routed or holders).items():  # what is not routed, writing refuses
        config = adapter_configs(denoiser)[adapter_name]
        if isinstance(config, FeraConfig):
            if config.base_model_name_or_path is None:
                config.base_model_name_or_path = str(getattr(pipe, "name_or_path", None) or "") or None
            if name != BARE:
                config.component = name
        folder = Path(path) / name if len(routed) > 1 else Path(path)
        write_adapter(denoiser, folder, adapter_name, file_names(loras, token))
        try:
            write_text(folder, loras, token)
        except OSError as error:
            raise FeraError(f"cannot write the adapter to {folder}: {error.strerror or error}") from error


def adapters(pipe: Target) -> list[str]:
    """Names of the adapters in a pipeline's denoisers, routed or plain."""
    names: dict[str, None] = {}
    for denoiser in denoisers(pipe).values():
        names.update(dict.fromkeys(adapter_configs(denoiser)))
    return list(names)


def set_adapters(pipe: Target, names: str | Sequence[str], weights: float | Sequence[float] | None = None) -> None:
    """Activate adapters, and weigh them; the others go to sleep.

    Those it names act, also where `pipe.disable_lora()` had switched adapters off.

    Args:
        pipe: a diffusers pipeline, a denoiser or a PeftModel.
        names: adapters to activate, routed or plain; none for the base model alone.
        weights: one for all, or one each; 1 when left out. A weight scales an adapter's experts, and its LoRA in the
            text encoders; not its gate, and not a token that it has learned, which is a word as long as it is loaded.

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
        _enable(denoiser)
        _activate(denoiser, list(own))
        for module in denoiser.modules():
            if isinstance(module, BaseTunerLayer):
                for name, weight in own.items():
                    set_scale: Any = module.set_scale
                    set_scale(name, weight)
    activate_text(pipe, available, dict(zip(names, weights, strict=True)))


@contextmanager
def trace(target: Target, *, to_cpu: bool = True) -> Iterator[list[Routing]]:
    """Record how every forward inside the block is routed.

    Args:
        target: a diffusers pipeline, a denoiser or a PeftModel that holds a FeRA adapter.
        to_cpu: move what is recorded to the CPU. False leaves it on the denoiser's device, so that no forward waits.

    Yields:
        A list that grows by one `Routing` a forward and adapter: `.adapter`, `.timestep`, `.indicator` (B, K),
        `.gates` (B, E), and `.component`, which of the pipeline's denoisers it was. With guidance in one
        doubled call, B is twice the number of images.

    Raises:
        FeraError: nothing in it is routed.
    """
    gates = [(gate, name) for name, denoiser in denoisers(target).items() if (gate := gate_of(denoiser)) is not None]
    if not any(gate.routes for gate, _ in gates):  # one that diffusers has taken the last adapter from has none
        kind = "FeRA adapter with a gate" if any(gate.router for gate, _ in gates) else "FeRA adapter"
        raise FeraError(f"nothing to trace: there is no {kind} here; load one with fera.load_adapter")
    routings: list[Routing] = []
    for gate, name in gates:
        gate.start_trace(routings, name, to_cpu=to_cpu)
    try:
        yield routings
    finally:
        for gate, _ in gates:
            gate.stop_trace(routings)


def unload(pipe: Target, adapter_name: str | None = None) -> None:
    """Take FeRA adapters out of a pipeline, with their parts in the text encoders; plain adapters stay.

    Args:
        pipe: a diffusers pipeline or a denoiser.
        adapter_name: the adapter; all routed ones when left out.

    Raises:
        FeraError: there is no such routed adapter.
    """
    found, gone = False, [name for name in _routed(pipe) if adapter_name in (None, name)]
    for denoiser in denoisers(pipe).values():
        routed = [
            name
            for name, config in adapter_configs(denoiser).items()
            if isinstance(config, FeraConfig) and adapter_name in (None, name)
        ]
        found = found or bool(routed)
        with weights_in_place(pipe):
            remove_adapters(denoiser, routed)
        _tell_diffusers(denoiser)
    with weights_in_place(pipe):
        remove_text(pipe, None if adapter_name is None else gone, gone)
    if adapter_name is not None and not found:
        raise FeraError(f"no FeRA adapter {adapter_name!r} to unload; there are: {_listing(adapters(pipe))}")


def _load(
    pipe: Target, files: Mapping[str, AdapterFile], adapter_name: str, allow_other_base: bool, hotswap: bool
) -> None:
    places = {name: denoisers(pipe)[name] for name in files}
    text = _text_for(pipe, files)
    if hotswap:
        swap_text(pipe, text, adapter_name, only_check=True)
        swap_adapters(places, files, adapter_name, check_base=not allow_other_base)
        return swap_text(pipe, text, adapter_name, only_check=False)
    for name, denoiser in places.items():
        if adapter_name in adapter_configs(denoiser):
            raise FeraError(
                f"{name} already has an adapter {adapter_name!r}; choose another adapter_name, or unload it"
            )
    if text is not None:
        check_text(pipe, text, adapter_name)
    with _all_or_nothing(pipe, places.values(), adapter_name):
        for name, denoiser in places.items():
            try:
                _put(files[name], denoiser, adapter_name, allow_other_base)
            except FeraError as error:
                raise FeraError(f"cannot load {files[name].weights.parent} into {name}: {error}") from error
        if text is not None:
            put_text(pipe, text, adapter_name)
        activate_text(pipe, adapters(pipe), {adapter_name: 1.0})
    for denoiser in places.values():
        _enable(denoiser)
        _activate(denoiser, [adapter_name])  # PEFT has done so among the layers of LoRA alone
        # Fresh layers are in training mode, where dropout acts.
        denoiser.train(denoiser.training)
        _tell_diffusers(denoiser)
        gate = gate_of(denoiser)
        if gate is not None:
            gate.scheduler = SchedulerOf(pipe)


def _load_plain(pipe: Target, path: str | os.PathLike[str], adapter_name: str, component: str | None) -> None:
    places = denoisers(pipe)
    if component is None and len(places) > 1:
        raise FeraError(
            f"{path} is a plain LoRA, which does not say where it belongs; give component, one of: {_listing(places)}"
        )
    component = next(iter(places)) if component is None else component
    if component not in places:
        raise FeraError(f"there is no denoiser {component!r} here; there are: {_listing(places)}")
    if adapter_name in adapters(pipe):
        raise FeraError(f"there is an adapter {adapter_name!r} already; choose another adapter_name, or delete it")
    denoiser = places[component]
    with weights_in_place(pipe), _all_or_nothing(pipe, [denoiser], adapter_name):
        put_plain_lora(pipe, component, path, adapter_name)
    denoiser.train(denoiser.training)
    _tell_diffusers(denoiser)
    set_adapters(pipe, adapter_name)


def _put(file: AdapterFile, denoiser: nn.Module, adapter_name: str, allow_other_base: bool) -> None:
    config = file.config
    config.inference_mode = True
    if allow_other_base:
        config.base_fingerprint = None
    if any(parameter.is_meta for parameter in denoiser.parameters()):
        raise FeraError(
            "its weights are not in memory (offloaded by accelerate, or by a device map): give fera.load_adapter the "
            "pipeline, or load the adapter first and offload then"
        )
    check_unfused(denoiser)  # before its weights are taken for another base's
    if config.base_fingerprint is not None:
        check_fingerprint(denoiser, config.base_fingerprint)  # says better why a layer would not fit
    check_layers(file.shapes, denoiser, PEFT_PREFIX, str(file.weights))
    with warnings.catch_warnings():
        # Several adapters on one model are meant here.
        warnings.filterwarnings("ignore", message="Already found a `peft_config` attribute")
        inject_adapter_in_model(config, denoiser, adapter_name)
    set_peft_model_state_dict(denoiser, file.tensors(), adapter_name)


@contextmanager
def _all_or_nothing(pipe: Target, places: Iterable[nn.Module], adapter_name: str) -> Iterator[None]:
    """Take an adapter out of everything again when the block fails, and leave active what was."""
    active = [(denoiser, _active(denoiser)) for denoiser in places]
    try:
        yield
    except Exception:
        for denoiser, names in active:
            remove_adapters(denoiser, [adapter_name])
            _activate(denoiser, names)
        remove_text(pipe, [adapter_name], [adapter_name])
        raise


def _text_for(pipe: Target, files: Mapping[str, AdapterFile]) -> TextFiles | None:
    """What an adapter has in the text encoders; a bare denoiser has none to take it."""
    if BARE in files:
        return None
    return next((file.text for file in files.values() if file.text is not None), None)


def _routed(pipe: Target) -> list[str]:
    """Names of the routed adapters."""
    return [name for name in adapters(pipe) if any(_is_routed(denoiser, name) for denoiser in denoisers(pipe).values())]


def _active(denoiser: nn.Module) -> list[str]:
    names: dict[str, None] = {}
    for path, module in denoiser.named_modules():
        if isinstance(module, BaseTunerLayer) and f".{EXPERTS}." not in path:  # a mixture's experts are always active
            names.update(dict.fromkeys(module.active_adapters))
    return list(names)


def _activate(denoiser: nn.Module, names: list[str]) -> None:
    frozen = all(adapter_configs(denoiser)[name].inference_mode for name in names)
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer):
            module.set_adapter(names, inference_mode=frozen)


def _enable(denoiser: nn.Module) -> None:
    """Let what is active act, also after `pipe.disable_lora()`."""
    for module in denoiser.modules():
        if isinstance(module, BaseTunerLayer) and module.disable_adapters:
            module.enable_adapters(True)


def _is_routed(denoiser: nn.Module, adapter_name: str) -> bool:
    return isinstance(adapter_configs(denoiser).get(adapter_name), FeraConfig)


def _tell_diffusers(denoiser: nn.Module) -> None:
    """Diffusers' own adapter methods ask this flag whether there is anything to do."""
    if hasattr(denoiser, "_hf_peft_config_loaded"):
        setattr(denoiser, "_hf_peft_config_loaded", bool(adapter_configs(denoiser)))  # noqa: B010


def _listing(names: Any) -> str:
    return ", ".join(names) or "none"
