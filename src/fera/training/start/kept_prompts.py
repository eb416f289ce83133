"""What a pipeline's text encoders make of validation prompts, kept in the run's cache: previews need none of them."""

import hashlib
import inspect
import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from fera.data.cache.store import digest, owned, read, write
from fera.models.families import Family
from fera.pipelines.block_offload import place
from fera.pipelines.empty_parts import PartIsEmpty
from fera.pipelines.waiting import Base
from fera.training.previewing import Previews

# Raise when a file of the same name would hold something else.
_VERSION = 1
# Name of the tensor that holds how the others lie in what was returned, as JSON in bytes.
_LAYOUT = "layout"


def keep_prompts(
    base: Base, family: Family, previews: Previews, folder: Path, key: list[Any], device: torch.device
) -> bool:
    """Encode validation prompts, and let the pipeline's `encode_prompt` answer from the cache from now on.

    The pipeline is called as it will be for the pictures, and stops at its denoiser, which still waits.

    Args:
        base: the base, whose denoisers wait.
        family: its family.
        previews: how the prompts will be drawn.
        folder: the cache.
        key: what the conditions of any caption depend on.
        device: where to encode.

    Returns:
        Whether that is so: False for a pipeline that goes to its text encoders on other ways, which then has to keep
        them.
    """
    pipe = base.pipe
    if not hasattr(pipe, "encode_prompt"):
        return False
    pipe.encode_prompt = _kept(base, family, folder, key, device)
    try:
        with base.using(["vae", *family.pairs.eyes] if family.pairs is not None else []):
            for call in previews.calls():
                try:
                    call(pipe)
                except PartIsEmpty as error:
                    if error.part in family.text_components:
                        raise _CannotKeep from None
    except _CannotKeep:
        del pipe.encode_prompt
        return False
    return True


class _CannotKeep(Exception):
    """What is asked or answered is nothing that files hold."""


def _kept(base: Base, family: Family, folder: Path, key: list[Any], device: torch.device) -> Callable[..., Any]:
    pipe = base.pipe
    encode = pipe.encode_prompt
    signature = inspect.signature(encode)

    @wraps(encode)
    def answer(*args: Any, **kwargs: Any) -> Any:
        asked = signature.bind(*args, **kwargs)
        asked.apply_defaults()
        arguments = dict(asked.arguments)
        wanted = arguments.pop("device", None) or pipe._execution_device
        name = digest([_VERSION, key, {name: _asked(value) for name, value in arguments.items()}])
        path = folder / f"prompt-{name}.safetensors"
        if not path.exists():
            with base.using(family.text_components), torch.no_grad():
                encoders = [getattr(pipe, part) for part in family.text_components]
                encoders = [part for part in encoders if isinstance(part, nn.Module)]
                for part in encoders:
                    place(part, device)
                told = {"device": device} if "device" in signature.parameters else {}
                tensors: dict[str, Tensor] = {}
                layout = _taken_apart(encode(**arguments, **told), tensors)
                for part in encoders:
                    place(part, "cpu")
            tensors[_LAYOUT] = torch.tensor(list(json.dumps(layout).encode()), dtype=torch.uint8)
            write(path, owned(tensors))
        tensors = read(path)
        layout = json.loads(bytes(tensors[_LAYOUT].tolist()))
        return _put_together(layout, {name: tensor.to(wanted) for name, tensor in tensors.items()})

    return answer


def _asked(value: Any) -> Any:
    """An argument as JSON: tensors and pictures by their digests."""
    if isinstance(value, list | tuple):
        return [_asked(item) for item in value]
    if isinstance(value, Tensor):
        content = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return [str(value.dtype), list(value.shape), hashlib.sha256(content).hexdigest()]
    if isinstance(value, Image.Image):
        return [value.mode, value.size, hashlib.sha256(value.tobytes()).hexdigest()]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.dtype):
        return str(value)
    raise _CannotKeep


def _taken_apart(value: Any, tensors: dict[str, Tensor]) -> Any:
    """What was returned as JSON, with names of tensors in their places."""
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, list | tuple):
        kind = "list" if isinstance(value, list) else "tuple"
        return {kind: [_taken_apart(item, tensors) for item in value]}
    if value is None or isinstance(value, bool | int | float | str):
        return {"value": value}
    raise _CannotKeep


def _put_together(layout: dict[str, Any], tensors: dict[str, Tensor]) -> Any:
    ((kind, held),) = layout.items()
    if kind == "tensor":
        return tensors[held]
    if kind == "value":
        return held
    items = [_put_together(item, tensors) for item in held]
    return items if kind == "list" else tuple(items)
