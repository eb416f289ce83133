"""What training must know of bases of sound.

A sound is samples (B, channels, N) in [-1, 1] to the autoencoder. Its latent is (B, C, L), with L along time, as the
gate sees it: the bands are frequencies along time. Noise and losses are those of pictures.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

# (pipeline, captions, seconds, device) to conditions.
EncodeFor = Callable[[Any, list[str], float, torch.device], dict[str, Tensor]]


@dataclass(frozen=True)
class Sound:
    """What a base of sound is made for.

    Args:
        rate: samples a second.
        channels: 1 (mono) or 2 (stereo).
        stride: samples that become one frame of the latent.
        longest: seconds that it can draw at most.
        argument: of the pipeline, the length in seconds.
        frames: seconds to frames of the latent, as the pipeline counts them.
        encode: as `Family.encode`, for a length in seconds.
        told: whether the base is told how long a sound is, apart from the latent's own length: silence behind a short
            sound is then nothing that it learns to draw.
    """

    rate: int
    channels: int
    stride: int
    longest: float
    argument: str
    frames: Callable[[float], int]
    encode: EncodeFor
    told: bool = False

    def samples(self, seconds: float) -> int:
        """Samples a channel that a latent of so many seconds is made of."""
        return self.frames(seconds) * self.stride


def encoded_sound(vae: Any, samples: Tensor) -> Tensor:
    """Latents of sounds in the autoencoder's own units, shape (B, C, L), float32; the mean of a distribution.

    Args:
        vae: the pipeline's autoencoder, of sounds.
        samples: shape (B, channels, N), in [-1, 1], on its device.
    """
    output = vae.encode(samples)
    latents: Tensor = output.latent_dist.mean if hasattr(output, "latent_dist") else output.latents
    return latents.float()


def channels_first(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, C, L)."""
    return latent


def channels_last(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, L, C); what is told of other sound is an argument of its own."""
    return latent.transpose(1, 2)
