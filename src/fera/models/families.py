"""What training must know about a family of pipelines. One entry a class of pipelines."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.family import Conditions, Family

__all__ = [
    "FAMILIES",
    "Conditions",
    "Family",
    "add_family",
    "encode_pictures",
    "family_of",
    "native_resolution",
    "size_multiple",
]

# Class of a pipeline to what makes its family: some need to know the pipeline's sizes.
FAMILIES: dict[str, Callable[[Any], Family]] = {}


def add_family(pipeline: str, make: Callable[[Any], Family]) -> None:
    """Let training know the pipelines of a class, by its name."""
    FAMILIES[pipeline] = make


def family_of(pipe: Any) -> Family:
    """The family of a pipeline.

    Raises:
        FeraError: training does not know it.
    """
    for cls in type(pipe).__mro__:
        if cls.__name__ in FAMILIES:
            return FAMILIES[cls.__name__](pipe)
    raise FeraError(
        f"fera cannot train a {type(pipe).__name__} yet; it can train: {', '.join(sorted(FAMILIES))}. "
        "Your own training loop can: put a fera.FeraConfig into the denoiser with peft.get_peft_model"
    )


def native_resolution(pipe: Any) -> int:
    """Side in pixels of the square pictures that a pipeline was made for."""
    denoiser: Any = next(iter(denoisers(pipe).values()))
    native = denoiser.config.get("sample_size") or pipe.default_sample_size
    return int(native if isinstance(native, int) else native[0]) * int(pipe.vae_scale_factor)


def size_multiple(pipe: Any) -> int:
    """What the sides of pictures, in pixels, must be a multiple of."""
    denoiser: Any = next(iter(denoisers(pipe).values()))
    return int(pipe.vae_scale_factor) * int(denoiser.config.get("patch_size") or 1) * family_of(pipe).packing


def encode_pictures(vae: Any, pixels: Tensor) -> Tensor:
    """Latents of pictures, before the autoencoder's shift and scale: the mean where it gives a distribution.

    Args:
        vae: the pipeline's autoencoder.
        pixels: shape (B, 3, H, W), in [-1, 1], on its device.
    """
    encoded = vae.encode(pixels)
    latents: Tensor = encoded.latent_dist.mean if hasattr(encoded, "latent_dist") else encoded.latent
    return latents
