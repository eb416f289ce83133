"""Files of the cache: written whole, read once where memory allows."""

import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from fera.errors import FeraError

_MEMORY_BYTES = 256 * 2**20


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file whole: another process sees all of it or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    # Clones: a row of a batch would drag the whole batch along.
    owned = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    save_file(owned, temporary)
    os.replace(temporary, path)


class Memory:
    """Keeps the files it reads until it is full; small data sets are then read from disk once."""

    def __init__(self) -> None:
        self._files: dict[Path, dict[str, Tensor]] = {}
        self._left = _MEMORY_BYTES

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file.

        Raises:
            FeraError: it was removed or damaged since it was written.
        """
        if path in self._files:
            return self._files[path]
        tensors = _read(path)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._left:
            self._left -= size
            self._files[path] = tensors
        return tensors


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise FeraError(f"cached file {path} cannot be read ({error}); delete it and start again") from error
