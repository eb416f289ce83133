"""JoyImage Edit."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fera.models.registry import Denoiser, add

# Text and picture attend to each other, each through layers of its own.
_ATTENTION = ("img_attn_qkv", "img_attn_proj", "txt_attn_qkv", "txt_attn_proj")


def _last_picture(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, pictures, C, T, H, W), of which the last is drawn; references come before it."""
    return latent[:, -1].flatten(1, 2)


def _first_patches(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, L, C, t, h, w), patches, with the sizes of a sample's pictures in `shape_list`: (frames, height, width).

    The first picture of a sample is drawn; its references follow, and padding.
    """
    frames, height, width = arguments["shape_list"][0][0]
    patches = latent[:, : frames * height * width].unflatten(1, (frames, height, width))
    video = patches.permute(0, 4, 1, 5, 2, 6, 3, 7)  # (B, C, T, t, H, h, W, w)
    return video.flatten(6, 7).flatten(4, 5).flatten(1, 3)


add(
    "JoyImageEditTransformer3DModel",
    Denoiser(
        "hidden_states",
        _last_picture,
        _ATTENTION,
        beside=("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
        pipelines=("JoyImageEditPipeline",),
    ),
)
add(
    "JoyImageEditPlusTransformer3DModel",
    Denoiser(
        "hidden_states",
        _first_patches,
        _ATTENTION,
        beside=("img_mlp.net.0.proj", "img_mlp.net.2", "txt_mlp.net.0.proj", "txt_mlp.net.2"),
        pipelines=("JoyImageEditPlusPipeline",),
    ),
)
