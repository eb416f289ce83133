"""What can be evaluated: routed adapters, plain ones of PEFT, and fine-tuned denoisers."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from peft import PeftConfig

from fera.errors import FeraError, reason_of
from fera.format import CONFIG, WEIGHTS
from fera.models.components import denoisers
from fera.pipelines.adapters import load_adapter, set_adapters
from fera.training.trained.plain import add_plain, read_plain

_NAME = "default"


def load_subject(pipe: Any, path: str, weight: float = 1.0) -> None:
    """Put what a folder holds into a pipeline.

    Args:
        pipe: a pipeline without adapters.
        path: a routed adapter as `fera.load_adapter` takes it; a folder of a plain PEFT adapter (LoRA, LoHa, LoKr,
            OFT, …); a denoiser as `save_pretrained` writes it; or a run folder of `fera train` that holds one of these.
        weight: the weight of an adapter.

    Raises:
        FeraError: it is none of these, or does not fit the pipeline.
    """
    folder = Path(path)
    if (folder / "adapter").is_dir():
        folder = folder / "adapter"
    if (folder / "config.json").is_file():
        if weight != 1:
            raise FeraError(f"{folder} is a whole denoiser, which takes no weight (got {weight:g})")
        return _load_denoiser(pipe, folder)
    if (folder / CONFIG).is_file() and not _is_routed(folder):
        denoiser = next(iter(denoisers(pipe).values()))
        add_plain(denoiser, PeftConfig.from_pretrained(str(folder)), _NAME)
        read_plain(denoiser, folder, _NAME)
        denoiser.eval()  # fresh layers are in training mode
    else:
        load_adapter(pipe, path, adapter_name=_NAME)
    set_adapters(pipe, [_NAME], [weight])


def names_of(paths: Sequence[str]) -> list[str]:
    """Names for folders of results, by the last telling part of each path; numbered where they would be the same."""
    names: list[str] = []
    for path in paths:
        parts = [part for part in Path(path).absolute().parts if part not in ("adapter", WEIGHTS)]
        stem = re.sub(r"[\W_]+", "-", parts[-1].removesuffix(".safetensors")).strip("-") or "adapter"
        name, number = stem, 1
        while name in (*names, "base"):  # a run called "base" is not the baseline
            number += 1
            name = f"{stem}-{number}"
        names.append(name)
    return names


def _is_routed(folder: Path) -> bool:
    path = folder / CONFIG
    try:
        return str(json.loads(path.read_text(encoding="utf-8")).get("peft_type", "")).upper() == "FERA"
    except (ValueError, AttributeError) as error:
        raise FeraError(f"{path} is no adapter's configuration: {error}") from error


def _load_denoiser(pipe: Any, folder: Path) -> None:
    name, denoiser = next(iter(denoisers(pipe).items()))
    cls: Any = type(denoiser)
    try:
        tuned = cls.from_pretrained(folder, use_safetensors=True)
        denoiser.load_state_dict(tuned.state_dict())
    except Exception as error:  # diffusers raises many kinds on odd files
        raise FeraError(f"cannot load {folder} into {name}: {reason_of(error)}") from error
