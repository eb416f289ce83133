"""From an autoencoder's latents to those of the denoiser: what pipelines undo before they decode.

They differ in it: most divide by `scaling_factor` and know nothing of other entries in the autoencoder's configuration.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentUnits:
    """The denoiser's latents are (z - shift) * scale.

    Args:
        shift: one number, or one a channel.
        scale: the same.
    """

    shift: tuple[float, ...]
    scale: tuple[float, ...]

    def of(self, latents: Tensor) -> Tensor:
        """The autoencoder's latents as the denoiser knows them, shape (..., C, H, W); any where the numbers are one."""
        shift, scale = (
            torch.tensor(numbers).view((-1, 1, 1) if len(numbers) > 1 else ()).to(latents)
            for numbers in (self.shift, self.scale)
        )
        return (latents - shift) * scale


# Of latents that are the denoiser's already.
AS_THEY_ARE = LatentUnits((0.0,), (1.0,))


def scaled(vae: Any) -> LatentUnits:
    """Times `scaling_factor`, whatever else the autoencoder's configuration says."""
    return LatentUnits((0.0,), (float(vae.config.scaling_factor),))


def shifted(vae: Any) -> LatentUnits:
    """Less `shift_factor`, times `scaling_factor`."""
    shift = getattr(vae.config, "shift_factor", None) or 0.0
    return LatentUnits((float(shift),), (float(vae.config.scaling_factor),))


def standardized(vae: Any) -> LatentUnits:
    """Less the mean and over the deviation of each channel, where both are given; times `scaling_factor`."""
    mean, deviation = (getattr(vae.config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is None or deviation is None:
        return scaled(vae)
    factor = float(vae.config.scaling_factor)
    return LatentUnits(tuple(map(float, mean)), tuple(factor / float(value) for value in deviation))
