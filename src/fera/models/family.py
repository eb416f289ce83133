"""What training must know about the pipelines of one class."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """How the pipelines of one class turn captions into conditions and call their denoiser.

    Args:
        text_components: names of the pipeline's parts that make the conditions.
        encode: (pipeline, captions, device) to conditions by name, each with captions along its first axis.
        predict: (denoiser, noisy latents (B, C, H, W), timesteps (B,), conditions) to the prediction, shape
            (B, C, H, W).
        packing: latent pixels a side that the pipeline packs into one token, beside the denoiser's own patches.
        clip: names of the text encoders that are CLIP, which can be trained.
        encode_clip: (pipeline, captions, device, conditions) to conditions in which what the CLIP encoders make is
            computed anew; None where they make all of it.
    """

    text_components: tuple[str, ...]
    encode: Callable[[Any, list[str], torch.device], dict[str, Tensor]]
    predict: Callable[[nn.Module, Tensor, Tensor, Conditions], Tensor]
    packing: int = 1
    clip: tuple[str, ...] = ()
    encode_clip: Callable[[Any, list[str], torch.device, Conditions], dict[str, Tensor]] | None = None
