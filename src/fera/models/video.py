"""What training must know of bases of videos.

A clip is pixels (B, 3, F, H, W) to the autoencoder. Its latent is kept as (B, C T, h, w) or (B, T C, h, w): with its
frames as channels, as the gate sees it (`layouts_video`). Noise and losses are then those of pictures. A picture is a
clip of one frame, and its latent is that of a picture.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.layouts import count_channels
from fera.models.pictures import encoded

# That go through an autoencoder of pictures together.
_FRAMES = 8


@dataclass(frozen=True)
class Video:
    """What a base of videos is made for.

    Args:
        stride: frames of a clip that become one frame of the latent, the first one apart: a clip has one frame and a
            multiple of this.
        frame_rate: frames a second that the base has learned.
        most: frames of the longest clip that it has places for; None where there is no such limit.
        argument: name of the pipeline's argument for how many frames it draws.
    """

    stride: int
    frame_rate: float
    most: int | None = None
    argument: str = "num_frames"


def frames_behind_channels(denoiser: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, C T, h, w) as most denoisers of videos take them, (B, C, T, h, w)."""
    return latents.unflatten(1, (count_channels(denoiser), -1))


def frames_before_channels(denoiser: nn.Module, latents: Tensor) -> Tensor:
    """Latents (B, T C, h, w) of denoisers that the gate sees so, as (B, T, C, h, w)."""
    return latents.unflatten(1, (-1, count_channels(denoiser)))


def folded(latents: Tensor) -> Tensor:
    """Latents (B, C, T, h, w), or (B, T, C, h, w), with frames as channels; the functions above are the ways back."""
    return latents.flatten(1, 2)


def encoded_clip(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of clips in the autoencoder's own units, shape (B, C, T, h, w), float32.

    Args:
        vae: the pipeline's autoencoder, of videos.
        pixels: clips of shape (B, 3, F, H, W), or pictures of shape (B, 3, H, W); in [-1, 1], on its device.
    """
    return encoded(vae, pixels[:, :, None] if pixels.ndim == 4 else pixels).float()


def encoded_frames(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of clips whose frames a pipeline's autoencoder of pictures encodes each by itself.

    Args:
        vae: the autoencoder.
        pixels: clips of shape (B, 3, F, H, W), or pictures of shape (B, 3, H, W); in [-1, 1], on its device.

    Returns:
        In the autoencoder's own units, shape (B, C, F, h, w), float32.
    """
    clips = pixels[:, :, None] if pixels.ndim == 4 else pixels
    latents = [encoded(vae, frames) for frames in clips.transpose(1, 2).flatten(0, 1).split(_FRAMES)]
    return torch.cat(latents).float().unflatten(0, (len(clips), -1)).transpose(1, 2)


def by_channel(latents: Tensor, mean: Any, deviation: Any) -> Tensor:
    """Latents (B, C, T, h, w) less the mean and over the deviation of each channel."""
    mean, deviation = (torch.as_tensor(values).to(latents).view(1, -1, 1, 1, 1) for values in (mean, deviation))
    result: Tensor = (latents - mean) / deviation
    return result
