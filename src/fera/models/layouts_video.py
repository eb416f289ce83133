"""How the denoisers of videos and sound lay out their latent, and how to see it as (B, C, H, W) or (B, C, L).

The frames of a video count as channels, (B, T C, H, W): the indicator is then the share of *spatial* energy over all
frames. It is that of a picture at the same noise level, whatever moves and however long the video is. Averaging the
frames instead would cancel what moves, and the noise with it: the shares would depend on the number of frames.

The functions have the form of those in `layouts`. A frame that the pipeline gives as a condition, whose tokens have
timestep 0, is set to zero: it adds nothing to the energy of any band.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.layouts import Arguments, count_channels


def channels_first(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, C, T, H, W), to which image-to-video variants append the channels of their conditions.

    Others write the given first frame into the latent itself: Wan 2.2 (5B) and Sana-Video then pass a timestep a token,
    (B, T L) or (B, 1, T, H, W), 0 on that frame; HunyuanVideo says so in its configuration (`token_replace`).
    """
    latent = latent[:, : count_channels(denoiser)]
    timestep = arguments.get("timestep")
    if timestep is not None and timestep.ndim > 1:
        level = timestep.flatten(1).unflatten(1, (latent.shape[2], -1)).amax(dim=2)
        latent = latent * (level > 0)[:, None, :, None, None]
    if getattr(denoiser.config, "image_condition_type", None) == "token_replace":
        latent = latent[:, :, 1:]
    return latent.flatten(1, 2)


def frames_first(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, T, C, H, W), to which image-to-video variants append the channels of their conditions."""
    return latent[:, :, : count_channels(denoiser)].flatten(1, 2)


def packed_frames(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, T H W, C), a latent pixel a token; `num_frames`, `height` and `width` are sizes of the latent.

    Image-to-video variants write the given frame into the latent and pass a timestep a token, (B, T H W), 0 on it.

    Raises:
        FeraError: the call lacks a size, or the sizes are not those of this latent.
    """
    sizes: Any = [arguments.get(name) for name in ("num_frames", "height", "width")]
    if None in sizes or math.prod(sizes) != latent.shape[1]:
        raise FeraError(
            f"{type(denoiser).__name__} was called with {latent.shape[1]} tokens, and num_frames, height and width are "
            f"{', '.join(map(str, sizes))}: fera needs them to see how the tokens lie in the video; pass them in "
            "latent pixels, as the pipeline of this denoiser does"
        )
    tokens = latent[..., : count_channels(denoiser)]
    timestep = arguments.get("timestep")
    if timestep is not None and timestep.shape == tokens.shape[:2]:
        tokens = tokens * (timestep > 0)[..., None]
    return tokens.unflatten(1, sizes).permute(0, 1, 4, 2, 3).flatten(1, 2)


def listed_videos(denoiser: nn.Module, latent: Any, arguments: Arguments) -> Tensor:
    """A list of videos, each (C, T, H, W); conditions are lists of their own.

    Raises:
        FeraError: the videos differ in size.
    """
    if len({video.shape for video in latent}) > 1:
        raise FeraError(
            f"{type(denoiser).__name__} got videos of different sizes in one call: "
            f"{', '.join(str(tuple(video.shape)) for video in latent)}; pass videos of one size at a time"
        )
    return torch.stack(list(latent)).flatten(1, 2)


def sound(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, C, L)."""
    return latent[:, : count_channels(denoiser)]
