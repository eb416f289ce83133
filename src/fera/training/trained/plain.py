"""Plain adapters of PEFT, the baselines of routed ones: their settings and their files.

A file is what PEFT's own `save_pretrained` writes, so that PEFT reads it without fera.
"""

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from peft import PeftConfig, PeftType, inject_adapter_in_model, set_peft_model_state_dict
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import get_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from fera.adapters.tensors import save_tensors
from fera.errors import FeraError
from fera.format import CONFIG, PEFT_PREFIX, WEIGHTS
from fera.models.layers import default_targets
from fera.support.files import replace_file
from fera.support.hints import hint
from fera.tuner.model import adapter_configs

# VeRA is not among them: its layers share state that PEFT keeps on a wrapper around the denoiser.
SCHEMES = ("LORA", "LOHA", "LOKR", "OFT", "BOFT", "IA3")


def plain_config(settings: Mapping[str, Any], placed: Mapping[str, list[str]] | None = None) -> PeftConfig:
    """The PEFT config that a configuration's `adapter.plain` describes.

    Args:
        settings: `peft_type` and fields of that scheme's config.
        placed: `target_modules` and `exclude_modules`, where not the defaults of the denoiser's class.

    Raises:
        FeraError: the scheme is none of `SCHEMES`, or a setting is unknown or not valid.
    """
    kind = str(settings.get("peft_type", "")).upper()
    if kind not in SCHEMES:
        raise FeraError(
            f"adapter.plain needs peft_type, one of {', '.join(SCHEMES)}; got {settings.get('peft_type')!r}"
        )
    for name in ("target_modules", "exclude_modules"):
        if name in settings:
            raise FeraError(f"adapter.plain sets {name}; set adapter.{name}, which places every adapter")
    cls: Any = PEFT_TYPE_TO_CONFIG_MAPPING[PeftType(kind)]
    known = [field.name for field in fields(cls) if field.init]
    for name in settings:
        if name != "peft_type" and name not in known:
            raise FeraError(f"adapter.plain: {cls.__name__} has no setting {name!r}{hint(name, known)}")
    values = {name: value for name, value in settings.items() if name != "peft_type"}
    if kind == "IA3":
        values.setdefault("feedforward_modules", [])  # (IA)3 has to be told that it scales no layer's input
    try:
        return cls(**(placed or {}), **values)
    except (TypeError, ValueError) as error:
        raise FeraError(f"adapter.plain: {error}") from error


def add_plain(denoiser: nn.Module, config: PeftConfig, adapter_name: str) -> None:
    """Put a fresh plain adapter into a denoiser.

    Args:
        denoiser: changed in place.
        config: the config of the adapter; unset `target_modules` become the defaults of the denoiser's class.
        adapter_name: what to call it.

    Raises:
        FeraError: the scheme does not fit the layers.
    """
    settings: Any = config
    if settings.target_modules is None:
        settings.target_modules = default_targets(denoiser)
    try:
        inject_adapter_in_model(config, denoiser, adapter_name)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeraError(f"adapter.plain: {error}") from error


def write_plain(denoiser: nn.Module, folder: Path, adapter_name: str, base: str) -> None:
    """Save a plain adapter as PEFT does; both files are replaced whole.

    Args:
        denoiser: the model that holds it.
        folder: made if missing.
        adapter_name: the adapter.
        base: the pipeline that it belongs to, for the config.

    Raises:
        FeraError: the folder cannot be written.
    """
    config: Any = adapter_configs(denoiser)[adapter_name]
    state = get_peft_model_state_dict(denoiser, adapter_name=adapter_name, save_embedding_layers=False)
    tensors = {
        f"{PEFT_PREFIX}{key.removeprefix(PEFT_PREFIX)}": tensor.detach().contiguous().cpu()
        for key, tensor in state.items()
    }
    settings = {key: sorted(value) if isinstance(value, set) else value for key, value in config.to_dict().items()}
    settings |= {"inference_mode": True, "base_model_name_or_path": base}
    text = json.dumps(settings, indent=2, sort_keys=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        replace_file(folder / WEIGHTS, lambda path: save_tensors(tensors, path, {"format": "pt"}))
        replace_file(folder / CONFIG, lambda path: path.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot write the adapter to {folder}: {error.strerror or error}") from error


def read_plain(denoiser: nn.Module, folder: Path, adapter_name: str) -> None:
    """Give a plain adapter of a denoiser the weights of a file.

    Raises:
        FeraError: the file is missing, damaged, or of another adapter.
    """
    path = folder / WEIGHTS
    try:
        result: Any = set_peft_model_state_dict(denoiser, load_file(path), adapter_name)
    except (OSError, SafetensorError, RuntimeError, KeyError) as error:
        raise FeraError(f"cannot read the plain adapter {path}: {error}") from error
    if result.unexpected_keys:
        raise FeraError(f"{path} is not of this adapter: the denoiser has no {result.unexpected_keys[0]}")
