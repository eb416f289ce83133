"""From clean latents back to pictures, where no shift and scale of `Family.units` says how: as pipelines decode them.

Each function takes an autoencoder and latents as `Family.latents` gives them, in its precision and on its device, and
gives pictures (B, 3, H, W) in [-1, 1].
"""

from typing import Any

import torch
from torch import Tensor

from fera.models.packing import pack, unpack
from fera.models.video import by_channel


def from_standardized(vae: Any, latents: Tensor) -> Tensor:
    """The way back from `pictures.standardized`; the opacity of pictures that have one is left out."""
    return _decoded(vae, _spread(latents[:, :, None], vae.config.latents_mean, vae.config.latents_std))[:, :3, 0]


def from_blocks(vae: Any, latents: Tensor, epsilon: float | None = None) -> Tensor:
    """The way back from `pictures.block_standardized`.

    Args:
        vae: the autoencoder, of FLUX.2.
        latents: shape (B, C, h, w).
        epsilon: added to the variance; as its configuration says when left out.
    """
    height, width = (side // 2 for side in latents.shape[2:])
    added = vae.config.batch_norm_eps if epsilon is None else epsilon
    mean, variance = (getattr(vae.bn, name).float() for name in ("running_mean", "running_var"))
    blocks = pack(latents).float() * (variance + added).sqrt() + mean
    return _decoded(vae, unpack(blocks, height, width).to(latents.dtype))


def first_frame(vae: Any, latents: Tensor) -> Tensor:
    """The first frame of clips whose latents have frames behind channels, (B, C T, h, w).

    They were standardized by channel where the autoencoder's configuration has means, and multiplied by
    `scaling_factor` where it has that. The first frame of a latent is decoded as that of a picture is.
    """
    config = vae.config
    frames = latents.unflatten(1, (channels_of(vae), -1))[:, :, :1] / (getattr(config, "scaling_factor", None) or 1.0)
    mean, deviation = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and deviation is not None:
        frames = _spread(frames, mean, deviation)
    return _decoded(vae, frames)[:, :, 0]


def channels_of(vae: Any) -> int | None:
    """Channels of an autoencoder's latents; None where its configuration does not say."""
    channels: int | None = getattr(vae.config, "z_dim", None) or getattr(vae.config, "latent_channels", None)
    return channels


def _spread(latents: Tensor, mean: Any, deviation: Any) -> Tensor:
    """The way back from `by_channel`."""
    mean, deviation = (torch.as_tensor(values).to(latents) for values in (mean, deviation))
    return by_channel(latents, -mean / deviation, 1 / deviation)


def _decoded(vae: Any, latents: Tensor) -> Tensor:
    pictures: Tensor = vae.decode(latents, return_dict=False)[0]
    return pictures
