"""Learned vectors among what a denoiser is told of the text: where they go, in each class of denoisers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.errors import FeraError
from fera.models.registry import argument_names

STATES = "encoder_hidden_states"


@dataclass(frozen=True)
class TextStates:
    """How the denoisers of one class take the states of the text, (B, L, D), without an order among them.

    Args:
        width: the denoiser's config to D.
        mask: name of the argument that says which states are a caption's own, (B, L); it may be absent in a call.
        ids: name of the argument with the states' position ids, (L, n), all 0.
    """

    width: Callable[[Any], int]
    mask: str | None = None
    ids: str | None = None


def _width_of_unet(config: Any) -> int:
    # Kolors: the states are projected before the layers see them.
    width = config.encoder_hid_dim if config.encoder_hid_dim_type == "text_proj" else config.cross_attention_dim
    return int(width if isinstance(width, int) else width[0])


_CLASSES = {
    "AuraFlowTransformer2DModel": TextStates(lambda config: config.joint_attention_dim),
    "FluxTransformer2DModel": TextStates(lambda config: config.joint_attention_dim, ids="txt_ids"),
    "PixArtTransformer2DModel": TextStates(lambda config: config.caption_channels, "encoder_attention_mask"),
    "SD3Transformer2DModel": TextStates(lambda config: config.joint_attention_dim),
    "SanaTransformer2DModel": TextStates(lambda config: config.caption_channels, "encoder_attention_mask"),
    "UNet2DConditionModel": TextStates(_width_of_unet, "encoder_attention_mask"),
}


def text_states(denoiser: nn.Module) -> TextStates:
    """How a denoiser takes the states of the text.

    Raises:
        FeraError: its class orders them, or fera does not know it.
    """
    for cls in type(denoiser).__mro__:
        if cls.__name__ in _CLASSES:
            return _CLASSES[cls.__name__]
    raise FeraError(
        f"fera cannot put a soft prompt before the text of a {type(denoiser).__name__}; it can for "
        f"{', '.join(_CLASSES)}. Leave num_virtual_tokens out"
    )


def with_soft_prompt(
    denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], vectors: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of a denoiser's call with learned vectors before the states of its text.

    Args:
        denoiser: the denoiser.
        args: the call's arguments by position.
        kwargs: those by keyword.
        vectors: shape (V, D); the same for all samples.

    Returns:
        Arguments by position and by keyword.

    Raises:
        FeraError: the call has no states of a text.
    """
    entry = text_states(denoiser)
    # Asked for where it matters alone: a compiler cannot follow it.
    names = [] if STATES in kwargs else argument_names(type(denoiser))
    call = {**dict(zip(names, args, strict=False)), **kwargs}
    states = call.get(STATES)
    if not isinstance(states, Tensor) or states.ndim != 3:
        raise FeraError(
            f"the adapter has a soft prompt, but this call of the {type(denoiser).__name__} has no {STATES} to put it "
            "before"
        )
    call[STATES] = torch.cat([vectors.to(states).expand(len(states), -1, -1), states], dim=1)
    if entry.mask is not None and (mask := call.get(entry.mask)) is not None:
        # What is masked is 0 in a mask of numbers; in the bias that some callers make of one it is what is not.
        kept = 0 if mask.ndim == 3 else 1
        call[entry.mask] = functional.pad(mask, (len(vectors), 0), value=kept)
    if entry.ids is not None and (ids := call.get(entry.ids)) is not None:
        call[entry.ids] = functional.pad(ids, (0, 0, len(vectors), 0))
    return (tuple(call.pop(name) for name in names[: len(args)]) if names else args), call
