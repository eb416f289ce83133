"""Kandinsky 6: video with its sound, and the refining of enlarged videos."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fera.models.registry import Denoiser, add

# As Kandinsky 5's, and what lets picture and sound see each other.
_ATTENTION = (
    *("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer"),
    *("av_cross_attention.out_layer", "va_cross_attention.out_layer"),
)


def _unmasked_frames(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, frames, H, W, C); frames count as channels.

    Behind its own channels come those of a given picture and of a mask. A frame that is given, where the mask is 1, is
    set to zero.
    """
    config: Any = denoiser.config
    own = latent[..., : config.in_visual_dim]
    if latent.shape[-1] > 2 * config.in_visual_dim:
        own = own * (1 - latent[..., -1:])
    return own.permute(0, 1, 4, 2, 3).flatten(1, 2)


add(
    "Kandinsky6Transformer3DModel",
    Denoiser(
        "hidden_states",
        _unmasked_frames,
        _ATTENTION,
        beside=("feed_forward.net.0.proj", "feed_forward.net.2"),
        pipelines=("Kandinsky6TI2VAPipeline",),
    ),
)
