"""What a pipeline does to a prompt before its text encoders read it, so that captions fare alike.

Settings are those that a pipeline has when it is called without them.
"""

import inspect
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

# Why the text encoders of some pipelines cannot be trained, where nothing but another pipeline would help.
WITHOUT_GRADIENTS = "its pipeline encodes captions without gradients"
QUOTED_ALONE = "it reads only what stands in quotation marks in a caption"
_SETTINGS = ("clean_caption", "max_sequence_length", "complex_human_instruction")


def prompt_settings(pipe: Any) -> dict[str, Any]:
    """Arguments for `encode_prompt` with which a pipeline encodes prompts by default when it draws.

    `clean_caption` is off where the packages that it needs, ftfy and beautifulsoup4, are not installed: pipelines then
    go without.
    """
    called = inspect.signature(pipe.__call__).parameters
    # InstructPix2Pix has but a private one, which takes none of them.
    encoding = inspect.signature(getattr(pipe, "encode_prompt", lambda: None)).parameters
    settings = {name: called[name].default for name in _SETTINGS if name in called and name in encoding}
    if settings.get("clean_caption"):
        settings["clean_caption"] = _can_clean(pipe)
    return settings


def pipeline_settings(pipe: Any) -> dict[str, str]:
    """What a pipeline makes of a caption besides its parts: the code of diffusers, and its settings."""
    settings = {name: repr(value) for name, value in pipe.config.items() if name not in pipe.components}
    return {name: value for name, value in settings.items() if name[0] != "_"} | {"diffusers": version("diffusers")}


def _can_clean(pipe: Any) -> bool:
    """Whether the packages are there that the pipeline's own module asks for before it cleans a prompt."""
    modules = [sys.modules[cls.__module__] for cls in type(pipe).__mro__]
    asked = [getattr(module, name, None) for module in modules for name in ("is_bs4_available", "is_ftfy_available")]
    return all(ask() for ask in asked if ask is not None)


def as_read(pipe: Any, caption: str) -> str:
    """A caption as the tokenizers get it, without an instruction in front of it."""
    if not hasattr(pipe, "_text_preprocessing"):
        return caption
    return str(pipe._text_preprocessing(caption, clean_caption=prompt_settings(pipe)["clean_caption"])[0])


def instruction(pipe: Any) -> str:
    """What the pipeline puts in front of a prompt; empty for most."""
    return "\n".join(prompt_settings(pipe).get("complex_human_instruction") or ())


def with_empty(captions: Sequence[str], encoded: Tensor, unconditional: Tensor | None) -> Tensor:
    """Encoded captions, the empty ones among them as the pipeline encodes the prompt that guidance leads away from.

    Args:
        captions: B of them.
        encoded: shape (B, ...).
        unconditional: the same; None where no caption is empty.
    """
    if unconditional is None:
        return encoded
    is_empty = torch.tensor([not caption for caption in captions], device=encoded.device)
    return torch.where(is_empty.view(-1, *[1] * (encoded.ndim - 1)), unconditional, encoded)
