"""What the files of a finished run's adapter say: of a routed one, a plain one, or a whole denoiser."""

import json
import math
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from fera.adapters.inspection import describe
from fera.errors import FeraError
from fera.format import CONFIG, WEIGHTS

_PLAIN_SETTINGS = ("peft_type", "r", "lora_alpha", "lora_dropout", "alpha", "use_dora", "use_rslora")


def describe_adapter(folder: Path, problems: list[str]) -> dict[str, dict[str, Any]]:
    """Describe an adapter.

    Args:
        folder: the folder of the adapter.
        problems: gets a line where it cannot be read.

    Returns:
        Sections of facts as `fera.adapters.inspection.describe` gives them; empty where it cannot be read.
    """
    settings = _plain_settings(folder)
    try:
        if settings is not None:
            return _describe_plain(folder, settings)
        if (folder / "config.json").is_file() and not (folder / WEIGHTS).is_file():
            return _describe_denoiser(folder)
        return describe(folder)
    except (FeraError, OSError, SafetensorError) as error:
        problems.append(f"the adapter: {error}")
        return {}


def _plain_settings(folder: Path) -> dict[str, Any] | None:
    """The settings of a plain PEFT adapter, as a baseline leaves; None for a routed one, or where none can be read."""
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return settings if isinstance(settings, dict) and settings.get("peft_type", "FERA") != "FERA" else None


def _describe_plain(folder: Path, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    weights = folder / WEIGHTS
    targets = settings.get("target_modules")
    return {
        "file": {"path": str(weights), "bytes": weights.stat().st_size},
        "settings": {name: settings[name] for name in _PLAIN_SETTINGS if settings.get(name) not in (None, False)},
        "targets": {"target_modules": sorted(map(str, targets)) if isinstance(targets, list) else targets},
        "parameters": {"total": _parameters(weights)},
        "base": {"name": settings.get("base_model_name_or_path"), "revision": settings.get("revision")},
        "versions": {"peft": settings.get("peft_version")},
    }


def _describe_denoiser(folder: Path) -> dict[str, dict[str, Any]]:
    """Facts about a denoiser of which all weights were trained, as diffusers saves it."""
    files = sorted(folder.glob("*.safetensors"))
    return {
        "file": {"path": str(folder), "bytes": sum(path.stat().st_size for path in files)},
        "parameters": {"total": sum(map(_parameters, files))},
    }


def _parameters(weights: Path) -> int:
    with safe_open(weights, framework="pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())
