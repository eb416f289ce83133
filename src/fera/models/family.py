"""What training must know about the pipelines of one class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.latents import LatentUnits, scaled
from fera.models.placement import Placement

Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class turn captions into conditions and call their denoiser.

    Args:
        text_components: names of the pipeline's parts that make the conditions.
        encode: (pipeline, captions, device) to conditions by name, each with captions along its first axis. The empty
            caption is encoded as the pipeline encodes an absent negative prompt.
        predict: (denoiser, noisy latents (B, C, H, W), timesteps (B,), conditions) to the prediction, shape
            (B, C, H, W).
        packing: latent pixels a side that the pipeline packs into one token, beside the denoiser's own patches.
        clip: names of the text encoders that are CLIP, which can be trained.
        encode_clip: (pipeline, captions, device, conditions) to conditions in which what the CLIP encoders make is
            computed anew; None where they make all of it.
        placed: what the denoiser is told of where a picture's pixels lie in it, by name of the condition; None where it
            is told nothing of the kind.
        units: an autoencoder to how its latents become the denoiser's, as the pipeline undoes it.
    """

    text_components: tuple[str, ...]
    encode: Callable[[Any, list[str], torch.device], dict[str, Tensor]]
    predict: Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]
    packing: int = 1
    clip: tuple[str, ...] = ()
    encode_clip: Callable[[Any, list[str], torch.device, Conditions], dict[str, Tensor]] | None = None
    placed: Callable[[Placement], dict[str, tuple[float, ...]]] | None = None
    units: Callable[[Any], LatentUnits] = scaled
