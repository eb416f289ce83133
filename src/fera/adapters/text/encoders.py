"""The CLIP text encoders of a pipeline, each with its tokenizer."""

import re
from typing import Any

from torch import nn

# By name: importing transformers' models takes seconds.
_CLIP = {"CLIPTextModel", "CLIPTextModelWithProjection"}
ENCODER = re.compile(r"text_encoder(?:_[2-9])?")


def text_encoders(target: Any) -> dict[str, Any]:
    """CLIP text encoders that a pipeline holds, by component name; none in a bare denoiser.

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
        if ENCODER.fullmatch(name) and any(cls.__name__ in _CLIP for cls in type(module).__mro__)
    }


def tokenizer_name(encoder: str) -> str:
    """Name of the tokenizer that belongs to a text encoder."""
    return encoder.replace("text_encoder", "tokenizer")


def tokenizer_of(part: Any) -> Any:
    """A tokenizer as it is; of a processor of pictures and texts, its tokenizer."""
    return part if hasattr(part, "model_max_length") else part.tokenizer
