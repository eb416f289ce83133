"""What an adapter's files say about it, without any model."""

import math
import os
from typing import TYPE_CHECKING, Any

from fera.adapters.header import AdapterHeader, read_header
from fera.format import EXPERTS, FORMAT_VERSION, ROUTER_KEY, SOFT_PROMPT_KEY
from fera.method.settings import DEFAULTS

if TYPE_CHECKING:
    from fera.adapters.text.files import TextFiles

_LORA_SETTINGS = ("r", "lora_alpha", "lora_dropout")
_SETTINGS = (
    *_LORA_SETTINGS,
    *("num_experts", "ranks", "subspace_energy", "num_virtual_tokens", "num_bands", "kappa"),
    *("router", "router_input", "temperature", "router_features"),
)

_OF_A_GATE = ("num_bands", "kappa", "router_input", "temperature", "router_features")


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
    header = read_header(source)
    settings = header.settings
    fingerprint = settings.get("base_fingerprint") or {}
    described = {
        "file": {
            "path": str(header.weights),
            "bytes": header.weights.stat().st_size,
            "dtype": header.dtypes,
            "format_version": settings.get("format_version", FORMAT_VERSION),
        },
        "settings": _settings(settings),
        "targets": {"target_modules": _listed(settings.get("target_modules")), "layers": _layers(header)},
        "parameters": _parameters(header),
        "base": {
            "name": settings.get("base_model_name_or_path"),
            "revision": settings.get("revision"),
            "class": fingerprint.get("class"),
            "weight_tensors": fingerprint.get("tensors"),
            "sampled_tensors": len(fingerprint.get("sample", {})),
        },
        "versions": dict(sorted(header.versions.items())),
    }
    if header.text:
        # Their shapes are read with PyTorch.
        from fera.adapters.text.files import open_text

        described["text"] = _text(open_text(header.weights.parent, header.text))
    return described


def _text(text: "TextFiles") -> dict[str, Any]:
    described: dict[str, Any] = {"files": text.names, "parameters": text.parameters}
    for encoder, (rank, alpha, layers) in text.loras.items():
        modules = ", ".join(sorted({path.rpartition(".")[2] for path in layers}))
        described[encoder] = f"LoRA of rank {rank}, lora_alpha {alpha:g}, in {len(layers)} layers ({modules})"
    if text.token is not None:
        described |= {"token": text.token, "num_vectors": next(iter(text.vectors.values()))[0]}
    return described


def _settings(settings: dict[str, Any]) -> dict[str, Any]:
    shown = {name: settings.get(name, DEFAULTS[name]) for name in _SETTINGS}
    if shown["router"] == "gradient":  # without a gate nothing is read
        shown = {name: value for name, value in shown.items() if name not in _OF_A_GATE}
    if not shown["num_virtual_tokens"]:
        del shown["num_virtual_tokens"]
    if shown["subspace_energy"] is None:
        del shown["subspace_energy"]
    if settings.get("expert") is not None:
        # What a scheme's defaults are, PEFT knows.
        from fera.tuner.schemes import changed_settings

        scheme = changed_settings(settings["expert"])
        return scheme | {name: value for name, value in shown.items() if name not in _LORA_SETTINGS}
    if shown["ranks"] is None:
        del shown["ranks"]
    else:
        del shown["r"]
    # Without a gate all ranks are one LoRA.
    rank = sum(_ranks(settings)) if shown["router"] == "gradient" else shown["r"]
    scale = (shown["lora_alpha"] or 0.0) / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    name = "CERSA" if "subspace_energy" in shown else "LORA"
    return {"scheme": name} | shown | {"scale": scale}


def _ranks(settings: dict[str, Any]) -> list[int]:
    """Rank of each expert."""
    given = DEFAULTS | settings
    return given["ranks"] or [given["r"]] * given["num_experts"]


def _parameters(header: AdapterHeader) -> dict[str, Any]:
    total = sum(math.prod(shape) for shape in header.shapes.values())
    router = sum(math.prod(shape) for key, shape in header.shapes.items() if ROUTER_KEY in key)
    soft_prompt = sum(math.prod(shape) for key, shape in header.shapes.items() if SOFT_PROMPT_KEY in key)
    experts = total - router - soft_prompt
    ranks = _ranks(header.settings)
    each = [experts * rank // sum(ranks) for rank in ranks]
    return {
        "experts": experts,
        "per_expert": each[0] if len(set(each)) == 1 else each,
        "router": router,
        **({"soft_prompt": soft_prompt} if soft_prompt else {}),
        "total": total,
    }


def _layers(header: AdapterHeader) -> int:
    adapted = {key.split(f".{EXPERTS}.")[0] for key in header.shapes if f".{EXPERTS}." in key}
    return len(adapted) or sum(".lora_A." in key for key in header.shapes)


def _listed(targets: object) -> object:
    return sorted(targets) if isinstance(targets, set | list | tuple) else targets
