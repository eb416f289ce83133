"""Files of the cache: named by what they depend on, written whole."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fera.errors import FeraError
from fera.support.files import replace_file


def write(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a file whole: another process sees all of it or none.

    Args:
        path: the file; its folder is made.
        tensors: as `owned` gives them.
        metadata: goes into the header.

    Raises:
        FeraError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: save_file(tensors, file, metadata))
    except OSError as error:
        raise FeraError(
            f"cannot write to the cache, {path}: {error.strerror}. Free space there, or set data.cache_dir to a folder "
            "elsewhere; what is encoded already is kept"
        ) from error


def owned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the CPU, as files take them: a row of a batch would drag the whole batch along."""
    return {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}


def digest(value: Any) -> str:
    """Hash of anything that JSON can hold."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=16).hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a file.

    Raises:
        FeraError: it was removed or damaged since it was written.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FeraError(f"cached file {path} cannot be read ({error}); delete it and start again") from error
