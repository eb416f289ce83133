"""Bring in a checkpoint of the authors' released code."""

import os
import re
from pathlib import Path
from typing import Any

import torch
from peft import inject_adapter_in_model, set_peft_model_state_dict
from torch import Tensor

from fera.errors import FeraError
from fera.models.components import denoisers
from fera.tuner import FeraConfig
from fera.tuner.model import adapter_configs, remove_adapters

_EXPERT = re.compile(r"^base_model\.(?P<layer>.+)\.experts\.(?P<expert>\d+)\.lora_(?P<side>down|up)\.weight$")
_ROUTER = {
    "router.net.0.weight": "fera.router.hidden.weight",
    "router.net.0.bias": "fera.router.hidden.bias",
    "router.net.2.weight": "fera.router.output.weight",
    "router.net.2.bias": "fera.router.output.bias",
}


def load_released(
    pipe: Any,
    path: str | os.PathLike[str],
    *,
    adapter_name: str = "default",
    alpha: float = 1.0,
    temperature: float = 0.7,
) -> FeraConfig:
    """Put a checkpoint of the released code into a pipeline, as an adapter with the same outputs.

    It gets the released indicator (`FeraConfig.indicator`). `fera.save_adapter` then writes it as any other.

    Args:
        pipe: a diffusers pipeline or a denoiser: the base it was trained on, which the checkpoint does not name.
        path: what `FeRAModel.save_adapters` wrote. Loaded with `weights_only=True`: it cannot run code.
        adapter_name: what to call it; without dots.
        alpha: as in the training's configuration; the checkpoint does not hold it.
        temperature: the router's, likewise (`router_tau`).

    Returns:
        The adapter's config.

    Raises:
        FeraError: it cannot be read, is no such checkpoint, or does not fit this base. The pipeline is unchanged.
    """
    state = _read(Path(path))
    tensors, experts, rank = _convert(state, path)
    bands, features = _router_sizes(state, experts, path)
    config = FeraConfig(
        r=rank,
        lora_alpha=alpha,
        num_experts=experts,
        num_bands=bands,
        router_features=features,
        temperature=temperature,
        indicator="released",
        # The released code adapts every linear layer of a name.
        target_modules=sorted({key.split(".lora_")[0].rpartition(".")[2] for key in tensors if ".lora_" in key}),
        inference_mode=True,
    )
    denoiser = next(iter(denoisers(pipe).values()))
    if not adapter_name or "." in adapter_name or adapter_name in adapter_configs(denoiser):
        raise FeraError(f"adapter_name must be a new name without dots, got {adapter_name!r}")
    try:
        inject_adapter_in_model(config, denoiser, adapter_name)
        _check_layers(denoiser, tensors, adapter_name)
        set_peft_model_state_dict(denoiser, tensors, adapter_name)
    except FeraError as error:
        remove_adapters(denoiser, [adapter_name])
        raise FeraError(f"{path} does not fit this {type(denoiser).__name__}: {error}") from error
    except Exception:
        remove_adapters(denoiser, [adapter_name])
        raise
    denoiser.train(denoiser.training)  # fresh layers are in training mode, where dropout acts
    return config


def _read(path: Path) -> dict[str, Tensor]:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise FeraError(f"the checkpoint {path} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # on bytes that are none of its own, the restricted unpickler raises all kinds there are
        raise FeraError(
            f"{path} is no checkpoint that can be read safely: fera unpickles tensors only "
            f"({str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__})"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise FeraError(f"{path} holds no state dict of tensors; fera import takes what FeRAModel.save_adapters wrote")
    return {str(key): value.detach() for key, value in state.items()}


def _convert(state: dict[str, Tensor], path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], int, int]:
    """Tensors under fera's keys with the experts stacked, the number of experts, and the rank of one."""
    found: dict[str, dict[tuple[str, int], Tensor]] = {}
    unknown = []
    for key, tensor in state.items():
        if match := _EXPERT.match(key):
            found.setdefault(match["layer"], {})[match["side"], int(match["expert"])] = tensor
        elif key not in _ROUTER:
            unknown.append(key)
    if unknown or not found or not _ROUTER.keys() <= state.keys():
        what = f"it has {', '.join(unknown[:3])}" if unknown else "router or experts are missing"
        raise FeraError(f"{path} is no checkpoint of the released FeRA code: {what}")
    count = 1 + max(expert for matrices in found.values() for _, expert in matrices)
    ranks = {down.shape[0] for matrices in found.values() for (side, _), down in matrices.items() if side == "down"}
    if len(ranks) != 1 or any(len(matrices) != 2 * count for matrices in found.values()):
        raise FeraError(f"{path} is damaged: its layers do not all have {count} experts of one rank")
    tensors = {new: state[old] for old, new in _ROUTER.items()}
    for layer, matrices in found.items():
        tensors[f"{layer}.lora_A.weight"] = torch.cat([matrices["down", expert] for expert in range(count)])
        tensors[f"{layer}.lora_B.weight"] = torch.cat([matrices["up", expert] for expert in range(count)], dim=1)
    return tensors, count, ranks.pop()


def _router_sizes(state: dict[str, Tensor], experts: int, path: str | os.PathLike[str]) -> tuple[int, int]:
    features, bands = state["router.net.0.weight"].shape
    if state["router.net.2.weight"].shape != (experts, features):
        raise FeraError(
            f"{path} is damaged: a router with answers of shape {tuple(state['router.net.2.weight'].shape)} for "
            f"{experts} experts"
        )
    return bands, features


def _check_layers(denoiser: torch.nn.Module, tensors: dict[str, Tensor], adapter_name: str) -> None:
    """PEFT passes over tensors that find no layer."""
    own = {key.removesuffix(f".{adapter_name}.weight") for key in denoiser.state_dict() if ".lora_" in key}
    missing = [key for key in tensors if ".lora_" in key and key.removesuffix(".weight") not in own]
    if missing:
        raise FeraError(f"it has no layer for {missing[0]}")
