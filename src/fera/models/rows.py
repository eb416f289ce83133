"""Which rows of a layer's input belong to which sample, for the few layers whose rows are not samples.

Most layers see (batch, ...). Some see what was folded into the batch, or tokens of all samples in one axis: their class
says so by a part of their names, with a function of the call to how many rows a sample has. It gives one number for all
samples, or one each; None where that cannot be told.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

Count = int | Sequence[int] | None
CountRows = Callable[[nn.Module, Mapping[str, Any]], Count]


def unknown(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """Rows that no call tells: tokens of all samples in an order that the layer's neighbours choose."""
    return None


def frames(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """A row a frame of (B, T, C, H, W); patches in time have their frames in one row."""
    return 1 if getattr(denoiser.config, "patch_size_t", None) else int(call["hidden_states"].shape[1])


def frames_behind_channels(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """A row a frame of (B, C, T, H, W)."""
    return int(call["hidden_states"].shape[2])


def timesteps(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """A row a timestep, of which a sample has one, or one a token."""
    return call["timestep"].numel() // len(call["hidden_states"])


def text_tokens(denoiser: nn.Module, call: Mapping[str, Any], *, name: str = "encoder_hidden_states") -> Count:
    """A row a token of the text, (B, L, ...)."""
    return int(call[name].shape[1])


# Z-Image fills what it is given up to a multiple of this.
_MULTIPLE = 32


def picture_patches(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """Z-Image: a row a patch of a sample's pictures, each (C, T, H, W), references among them."""
    size, frames_a_patch = call.get("patch_size", 2), call.get("f_patch_size", 1)

    def patches(picture: Any) -> int:
        if picture is None:
            return _MULTIPLE
        _, count, height, width = picture.shape
        return _filled((count // frames_a_patch) * (height // size) * (width // size))

    return [sum(map(patches, _as_list(pictures))) for pictures in call["x"]]


def caption_tokens(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """Z-Image: a row a token of a sample's captions, each (L, C)."""
    return [sum(_filled(len(caption)) for caption in _as_list(captions)) for captions in call["cap_feats"]]


def vision_tokens(denoiser: nn.Module, call: Mapping[str, Any]) -> Count:
    """Z-Image: a row a token of a sample's references as its vision encoder sees them, each (H, W, C)."""

    def tokens(seen: Any) -> int:
        return _MULTIPLE if seen is None else _filled(seen.shape[0] * seen.shape[1])

    return [sum(map(tokens, pictures)) for pictures in call.get("siglip_feats") or [] if pictures]


def _filled(count: int) -> int:
    return count + -count % _MULTIPLE


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
