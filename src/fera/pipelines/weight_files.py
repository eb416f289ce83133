"""Weights as they lie in the files of a model: mapped, and read where they are looked at."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fera.errors import FeraError


def folder_of(model: nn.Module) -> str:
    """The folder that a model of diffusers was loaded from, as it says; "(no folder)" where it says none."""
    config: Any = getattr(model, "config", {})
    return str(config.get("_name_or_path") or "(no folder)")


def files_of(model: nn.Module) -> list[Path]:
    """The safetensors files that a model of diffusers was loaded from; none where they are not known."""
    folder = Path(folder_of(model))
    return sorted(folder.glob("*.safetensors")) if folder.is_dir() else []


def tensors_of(files: Sequence[Path]) -> Mapping[str, list[Path]]:
    """Names of the tensors in files to the files that hold one.

    Raises:
        FeraError: a file cannot be read.
    """
    found: dict[str, list[Path]] = {}
    for path in files:
        for name in _names_in(path):
            found.setdefault(name, []).append(path)
    return found


def dtype_of(files: Sequence[Path]) -> torch.dtype | None:
    """The floating point type that most tensors in safetensors files have; None where there is none.

    Raises:
        FeraError: a file cannot be read.
    """
    counts = Counter(mapped(path, name).dtype for name, paths in tensors_of(files).items() for path in paths)
    floats = [dtype for dtype, _ in counts.most_common() if dtype.is_floating_point]
    return floats[0] if floats else None


def plain_name(name: str) -> str:
    """The name of a weight without any adapter."""
    return name.replace(".base_layer.", ".")


def mapped(path: Path, name: str) -> Tensor:
    """A tensor of a file, in a mapping of its own: the pages that were read go with it.

    Raises:
        FeraError: the file cannot be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor
    except (SafetensorError, OSError) as error:
        raise FeraError(f"{path}, where weights of the base wait, cannot be read any more: {error}") from error


def remap(model: nn.Module, files: Sequence[Path]) -> None:
    """Give weights that were loaded as files hold them mappings of their own.

    A model is loaded with one mapping a file, whose pages stay in memory as long as one weight lies in it: those of
    weights that are copied later, too.

    Args:
        model: the model; changed in place.
        files: the safetensors files that it was loaded from.

    Raises:
        FeraError: a file cannot be read.
    """
    held = tensors_of(files)
    for name, weight in model.named_parameters():
        found = (mapped(path, name) for path in held.get(name, ()))
        if (same := next((tensor for tensor in found if is_same(weight.data, tensor)), None)) is not None:
            weight.data = same


def is_same(weight: Tensor, held: Tensor) -> bool:
    """Whether a file holds a weight as it is, as far as its two ends tell."""
    if weight.dtype != held.dtype or weight.shape != held.shape:
        return False
    ends = [(end,) * weight.ndim for end in (0, -1)] if weight.numel() else []
    return all(torch.equal(weight[end], held[end]) for end in ends)


def _names_in(path: Path) -> Iterator[str]:
    try:
        with safe_open(path, framework="pt") as file:
            yield from file.keys()
    except (SafetensorError, OSError) as error:
        raise FeraError(f"{path} cannot be read: {error}") from error
