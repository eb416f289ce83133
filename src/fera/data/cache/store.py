"""Files of the cache: named by what they depend on, written whole, read once where memory allows."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.image_processing_utils import ImageProcessingMixin

from fera.adapters.text.encoders import tokenizer_of
from fera.errors import FeraError
from fera.support.files import replace_file

_MEMORY_BYTES = 256 * 2**20


def write(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write a file whole: another process sees all of it or none.

    Raises:
        FeraError: it cannot be written.
    """
    # Clones: a row of a batch would drag the whole batch along.
    owned = {name: tensor.cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: save_file(owned, file))
    except OSError as error:
        raise FeraError(
            f"cannot write to the cache, {path}: {error.strerror}. Free space there, or set data.cache_dir to a folder "
            "elsewhere; what is encoded already is kept"
        ) from error


class Memory:
    """Keeps the files it reads until it is full; small data sets are then read from disk once.

    Args:
        size: how much it keeps, in bytes.
    """

    def __init__(self, size: int = _MEMORY_BYTES) -> None:
        self._files: dict[Path, dict[str, Tensor]] = {}
        self._left = size

    def read(self, path: Path) -> dict[str, Tensor]:
        """The tensors of a file.

        Raises:
            FeraError: it was removed or damaged since it was written.
        """
        if path in self._files:
            return self._files[path]
        tensors = read(path)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._left:
            self._left -= size
            self._files[path] = tensors
        return tensors


def fingerprint(part: Any) -> str:
    """Hash of a model's weights and of how adapters in it are set, or of a tokenizer's vocabulary and limits.

    Of a processor, that of its tokenizer; of one of pictures, its settings.
    """
    if part is None:
        return "none"
    hashed = hashlib.blake2b(digest_size=16)
    if isinstance(part, nn.Module):
        for name, tensor in sorted(part.state_dict().items()):
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        for name, module in part.named_modules():
            if isinstance(module, BaseTunerLayer):
                scales = sorted(getattr(module, "scaling", {}).items())
                hashed.update(repr((name, module.active_adapters, module.disable_adapters, scales)).encode())
        config: Any = part.config
        config = config if isinstance(config, dict) else config.to_dict()
        # Private entries say where the part was loaded from, not what it does.
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        hashed.update(json.dumps(settings, sort_keys=True, default=str).encode())
    elif isinstance(part, ImageProcessingMixin):
        hashed.update(part.to_json_string().encode())
    else:
        part = tokenizer_of(part)
        described = [type(part).__name__, part.model_max_length, sorted(part.get_vocab().items())]
        if template := getattr(part, "chat_template", None):
            described.append(template)
        hashed.update(json.dumps(described).encode())
    return hashed.hexdigest()


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
