"""Merge a routed adapter into its base under one fixed gate."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora.layer import Linear as LoraLinear
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from fera.adapters.text.parts import merge_text, text_layers
from fera.errors import FeraError
from fera.export.static import check_plain, gate_for, rank_weights
from fera.models.components import denoisers
from fera.pipelines.adapters import adapters, unload
from fera.pipelines.compression import is_compressed
from fera.pipelines.offloading import weights_in_place
from fera.traces.gates import GateChoice
from fera.tuner import FeraConfig
from fera.tuner.fast.linear import RoutedLinear
from fera.tuner.model import adapter_configs


@dataclass(frozen=True)
class Merged:
    """What `merge` did.

    Args:
        adapter: name of the adapter that is in the weights now.
        gate: weight of each expert, E values; a single 1 for an adapter without a gate.
        layers: paths of the layers whose weights changed, each behind its component's name; text encoders' last.
    """

    adapter: str
    gate: tuple[float, ...]
    layers: tuple[str, ...]


def merge(pipe: Any, gate: GateChoice | None = None, *, adapter_name: str = "default") -> Merged:
    """Merge an adapter into the weights of a pipeline's denoiser, with one mixture of its experts for good.

    An approximation: a routed adapter mixes its experts anew at every step. Exact, and without a gate to choose, where
    the adapter's router is "gradient": its experts act all alike. The adapter's weight, as
    `fera.set_adapters` left it, counts. The adapter is gone afterwards; others stay and stay routed. Its LoRA in the
    text encoders is merged too, exactly, and a token that it has learned stays a word of theirs.

    Args:
        pipe: a diffusers pipeline or a denoiser.
        gate: "uniform", one weight an expert (they sum to 1), or what `fera.trace` recorded: then the mean over its
            steps. None for an adapter without a gate.
        adapter_name: the adapter.

    Returns:
        The gate that was used, and the layers that were merged.

    Raises:
        FeraError: no gate is given or it is none, there is no such routed adapter, it cannot be merged or is not
            finite. The pipeline is unchanged.
    """
    if isinstance(pipe, PeftModel):
        raise FeraError("merge into the denoiser itself: fera.merge(model.get_base_model(), ...)")
    holders = {
        name: module
        for name, module in denoisers(pipe).items()
        if isinstance(adapter_configs(module).get(adapter_name), FeraConfig)
    }
    if not holders:
        have = ", ".join(adapters(pipe)) or "none"
        raise FeraError(f"no FeRA adapter {adapter_name!r} to merge; there are: {have}")
    if any(is_compressed(denoiser) for denoiser in holders.values()):
        raise FeraError(
            "the base is compressed: its weights are two factors each, which a merged adapter does not fit. Merge into "
            "the whole base"
        )
    config: Any = adapter_configs(next(iter(holders.values())))[adapter_name]
    check_plain(config)
    chosen = gate_for(config, gate, adapter_name)
    with weights_in_place(pipe):
        layers = {
            f"{component}.{path}": module
            for component, denoiser in holders.items()
            for path, module in denoiser.named_modules()
            if isinstance(module, LoraLayer) and adapter_name in module.lora_A
        }
        texts = text_layers(pipe, adapter_name)
        for path, layer in (layers | texts).items():
            _try_layer(path, layer, adapter_name, None if path in texts else chosen)
        for layer in layers.values():
            _merge_layer(layer, adapter_name, chosen)
        merge_text(pipe, adapter_name)
        unload(pipe, adapter_name)
    return Merged(adapter_name, tuple(chosen.tolist()), (*layers, *texts))


def _try_layer(path: str, layer: Any, adapter: str, gate: torch.Tensor | None) -> None:
    """All that could fail, before the first weight is touched: merge a layer, and put it back as it was."""
    base = layer.get_base_layer()
    if base.weight.is_meta or layer.lora_A[adapter].weight.is_meta:
        raise FeraError(
            f"the weights of {path} are not in memory (offloaded?), so nothing was merged; call fera.merge with the "
            "pipeline, which brings them back, or take the offloading away: pipe.remove_all_hooks()"
        )
    matrices: list[Any] = [layer.lora_A[adapter].weight, layer.lora_B[adapter].weight]
    if not all(torch.isfinite(matrix).all() for matrix in matrices):
        raise FeraError(f"adapter {adapter!r} has values at {path} that are not finite; nothing was merged")
    what = f"cannot merge into {path}, a {type(base).__name__} with weights of {base.weight.dtype}"
    advice = "nothing was merged. Load the base unquantized to merge into it, or keep the adapter unmerged"
    # PEFT would cast what it adds to whole numbers, or, where it has no layer of its own for a kind of weight, add it
    # to a dense copy.
    is_whole = type(base.weight) is nn.Parameter and not base.weight.is_floating_point()
    is_strange = type(base.weight) is not nn.Parameter and type(layer) in (LoraLinear, RoutedLinear)
    if is_whole or is_strange:
        raise FeraError(f"{what}; {advice}")
    try:
        with _put_back(layer, base, adapter):
            if gate is None:
                layer.merge(safe_merge=True, adapter_names=[adapter])
            else:
                _merge_layer(layer, adapter, gate, safe=True)
    except Exception as error:  # whatever a quantized layer raises
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise FeraError(f"{what} ({reason[0]}); {advice}") from error


@contextmanager
def _put_back(layer: Any, base: nn.Module, adapter: str) -> Iterator[None]:
    """Undo a safe merge, which puts new tensors in the place of old ones: bit for bit, and without a copy."""
    up: nn.Parameter = layer.lora_B[adapter].weight
    variants, merged, old_up = dict(layer.lora_variant), list(layer.merged_adapters), up.detach().clone()
    parameters: dict[str, Any] = dict(base._parameters)
    data = {name: held.data for name, held in parameters.items() if held is not None}
    state: Any = getattr(base, "state", None)  # of an 8-bit layer of bitsandbytes
    old_state = None if state is None else dict(vars(state))
    try:
        yield
    finally:
        up.data.copy_(old_up)
        layer.lora_variant.update(variants)
        layer.merged_adapters[:] = merged
        base._parameters.update(parameters)
        for name, old in data.items():
            parameters[name].data = old
        if old_state is not None:
            vars(state).clear()
            vars(state).update(old_state)


@torch.no_grad()
def _merge_layer(layer: Any, adapter: str, gate: torch.Tensor, *, safe: bool = False) -> None:
    """Make the adapter a plain LoRA of its layer, and let PEFT merge that into whatever kind of base layer it is."""
    up: nn.Parameter = layer.lora_B[adapter].weight
    weights = rank_weights(gate, up.shape[1]).to(up)
    up.mul_(weights.view(1, -1, *[1] * (up.ndim - 2)))
    layer.lora_variant.pop(adapter, None)  # without a gate it is a plain LoRA already
    layer.merge(safe_merge=safe, adapter_names=[adapter])
    layer.merged_adapters.remove(adapter)  # it is to be deleted, and the others of this layer still act
