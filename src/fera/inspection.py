"""What an adapter's files say about it, without any model."""

import math
import os
from typing import Any

from safetensors import safe_open

from fera.checkpoint import AdapterFile, open_adapter
from fera.text.files import TextFiles
from fera.tuner import FeraConfig
from fera.tuner.mixture import EXPERTS
from fera.tuner.schemes import changed_settings

ROUTER_KEY = "fera.router."
_LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout")
_SETTINGS = (
    *_LORA_SETTINGS,
    *("num_experts", "num_bands", "kappa", "router", "router_input", "temperature", "router_features"),
)


def describe(source: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Describe an adapter.

    Args:
        source: as `fera.load_adapter` takes it.

    Returns:
        JSON-like, in sections: `file`, `settings`, `targets`, `parameters`, `base`, `versions`, and `text` where it has
        parts in the text encoders.

    Raises:
        FeraError: it cannot be opened.
    """
    file = open_adapter(source)
    config = file.config
    fingerprint = config.base_fingerprint or {}
    return {
        "file": {
            "path": str(file.weights),
            "bytes": file.weights.stat().st_size,
            "dtype": _dtypes(file),
            "format_version": config.format_version,
        },
        "settings": _settings(config),
        "targets": {"target_modules": _listed(config.target_modules), "layers": _layers(file)},
        "parameters": _parameters(file),
        "base": {
            "name": config.base_model_name_or_path,
            "revision": config.revision,
            "class": fingerprint.get("class"),
            "weight_tensors": fingerprint.get("tensors"),
            "sampled_tensors": len(fingerprint.get("sample", {})),
        },
        "versions": dict(sorted(file.versions.items())),
    } | ({"text": _text(file.text)} if file.text is not None else {})


def _text(text: TextFiles) -> dict[str, Any]:
    described: dict[str, Any] = {"files": text.names, "parameters": text.parameters}
    for encoder, (rank, alpha, layers) in text.loras.items():
        modules = ", ".join(sorted({path.rpartition(".")[2] for path in layers}))
        described[encoder] = f"LoRA of rank {rank}, lora_alpha {alpha:g}, in {len(layers)} layers ({modules})"
    if text.token is not None:
        described |= {"token": text.token, "num_vectors": next(iter(text.vectors.values()))[0]}
    return described


def _settings(config: FeraConfig) -> dict[str, Any]:
    settings = {name: getattr(config, name) for name in _SETTINGS if hasattr(config, name)}
    if config.expert is not None:
        scheme = changed_settings(config.expert)
        return scheme | {name: value for name, value in settings.items() if name not in _LORA_SETTINGS}
    alpha = config.lora_alpha or 0.0
    scale = alpha / (math.sqrt(config.r) if config.use_rslora else config.r)
    return {"scheme": "LORA"} | settings | {"scale": scale}


def _parameters(file: AdapterFile) -> dict[str, int]:
    total = sum(math.prod(shape) for shape in file.shapes.values())
    experts = total - sum(math.prod(shape) for key, shape in file.shapes.items() if ROUTER_KEY in key)
    return {
        "experts": experts,
        "per_expert": experts // file.config.num_experts,
        "router": total - experts,
        "total": total,
    }


def _layers(file: AdapterFile) -> int:
    adapted = {key.split(f".{EXPERTS}.")[0] for key in file.shapes if f".{EXPERTS}." in key}
    return len(adapted) or sum(".lora_A." in key for key in file.shapes)


def _dtypes(file: AdapterFile) -> list[str]:
    with safe_open(file.weights, framework="pt") as tensors:
        return sorted({tensors.get_slice(key).get_dtype() for key in tensors.keys()})


def _listed(targets: object) -> object:
    return sorted(targets) if isinstance(targets, set | list | tuple) else targets
