"""From pictures to latents, by a pipeline's autoencoder.

Of autoencoders that give a distribution, the mean is taken: around it the usual ones are all but certain.
"""

from typing import Any

import torch
from torch import Tensor

from fera.models.packing import pack, unpack


def encoded(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pictures in the autoencoder's own units.

    Args:
        vae: the pipeline's autoencoder.
        pixels: shape (B, 3, H, W), or (B, 3, 1, H, W) for one of videos; in [-1, 1], on its device.
    """
    output = vae.encode(pixels)
    latents: Tensor = output.latent_dist.mean if hasattr(output, "latent_dist") else output.latent
    return latents


def standardized(vae: Any, pixels: Tensor) -> Tensor:
    """By the mean and the deviation of each channel, from an autoencoder of videos: a picture is one frame.

    Args:
        vae: the pipeline's autoencoder.
        pixels: shape (B, 3, H, W), in [-1, 1], on its device.

    Returns:
        Shape (B, C, h, w), float32.
    """
    latents = encoded(vae, pixels[:, :, None])[:, :, 0].float()
    mean, deviation = (
        torch.tensor(values, device=latents.device).view(1, -1, 1, 1)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return (latents - mean) / deviation


def block_standardized(vae: Any, pixels: Tensor, epsilon: float) -> Tensor:
    """By the running mean and variance of the autoencoder's batch norm, which counts the pixels of 2 x 2 apart.

    Args:
        vae: the pipeline's autoencoder, of FLUX.2.
        pixels: shape (B, 3, H, W), in [-1, 1], on its device.
        epsilon: added to the variance.

    Returns:
        Shape (B, C, h, w), float32.
    """
    latents = encoded(vae, pixels).float()
    deviation = (vae.bn.running_var.float() + epsilon).sqrt()
    height, width = (side // 2 for side in latents.shape[2:])
    return unpack((pack(latents) - vae.bn.running_mean.float()) / deviation, height, width)
