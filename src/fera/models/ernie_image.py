"""ERNIE-Image."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import rows
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.layouts import unpack
from fera.models.packing import pack
from fera.models.pictures import block_standardized
from fera.models.previews import from_blocks
from fera.models.prompts import WITHOUT_GRADIENTS
from fera.models.registry import Denoiser, add

_PACKING = 2
# The pipeline's own; its autoencoder's configuration says another.
_EPSILON = 1e-5


def _blocks(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, 4 C, H, W), 2 x 2 pixels an entry."""
    return unpack(latent.flatten(2).transpose(1, 2), *latent.shape[2:])


add(
    "ErnieImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        _blocks,
        pipelines=("ErnieImagePipeline",),
        # These see (L, B, C): a row a place in the sequence, of all samples.
        rows={"mlp": rows.unknown, "final_linear": rows.unknown},
    ),
)


def ernie_image(pipe: Any) -> Family:
    """ERNIE-Image: FLUX.2's latents, captions of unequal length.

    Its language model rewrites neither captions nor prompts. Its pipeline counts packing as a part of the
    autoencoder's scale.
    """
    call = {"guidance_scale": 1.0, "use_pe": False}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        untrained={"text_encoder": WITHOUT_GRADIENTS},
        packing=_PACKING,
        scale=int(pipe.vae_scale_factor) // _PACKING,
        latents=_latents,
        preview=partial(from_blocks, epsilon=_EPSILON),
        encodes_alone=True,
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["text_bth"]
    return {"text_bth": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return block_standardized(vae, pixels, _EPSILON)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    height, width = (side // _PACKING for side in noisy.shape[2:])
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy).transpose(1, 2).unflatten(2, (height, width)),
        timestep=timesteps.to(noisy.dtype),
        text_bth=conditions["text_bth"],
        text_lens=conditions["mask"].bool().sum(dim=1),
        return_dict=False,
    )[0]
    return unpack(prediction.flatten(2).transpose(1, 2), height, width)


add_family("ErnieImagePipeline", ernie_image, "ERNIE-Image")
