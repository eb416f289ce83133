"""The text encoders of a pipeline, each with its tokenizer."""

import copy
import re
from typing import Any

from torch import nn

from fera.adapters.text.kinds import kind_of

ENCODER = re.compile(r"text_encoder(?:_[2-9])?")


def text_encoders(target: Any) -> dict[str, Any]:
    """Text encoders of known kinds that a pipeline holds, by component name; none in a bare denoiser.

    Args:
        target: a diffusers pipeline, or anything else.
    """
    components = getattr(target, "components", None)
    if isinstance(target, nn.Module) or not isinstance(components, dict):
        return {}
    modules = {name: getattr(module, "_orig_mod", module) for name, module in components.items()}
    return {
        name: module
        for name, module in modules.items()
        if ENCODER.fullmatch(name) and isinstance(module, nn.Module) and kind_of(module) is not None
    }


def tokenizer_name(encoder: str) -> str:
    """Name of the tokenizer that belongs to a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


def tokenizer_part(pipe: Any, encoder: str) -> str:
    """Name of the pipeline's part that has the tokenizer of a text encoder: a tokenizer, or a processor around one."""
    name = tokenizer_name(encoder)
    return "processor" if not hasattr(pipe, name) and hasattr(pipe, "processor") else name


def tokenizer_for(pipe: Any, encoder: str) -> Any:
    """The tokenizer of a text encoder of a pipeline."""
    return tokenizer_of(getattr(pipe, tokenizer_part(pipe, encoder)))


def with_tokenizer(part: Any, tokenizer: Any) -> Any:
    """A pipeline's part with a tokenizer in the place of its own: the tokenizer itself, or a copy of a processor."""
    if tokenizer_of(part) is part:
        return tokenizer
    part = copy.copy(part)
    part.tokenizer = tokenizer
    return part


def tokenizer_of(part: Any) -> Any:
    """A tokenizer as it is; of a processor of pictures and texts, its tokenizer."""
    return part if hasattr(part, "model_max_length") else part.tokenizer
