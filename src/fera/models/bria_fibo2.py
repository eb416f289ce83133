"""Bria FIBO 2."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.pictures import block_standardized
from fera.models.previews import from_blocks
from fera.models.registry import FRACTION, Denoiser, add

_TIMESTEPS = 1000

add(
    "BriaFibo2Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        beside=("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
        timestep_range=FRACTION,
        pipelines=("BriaFibo2Pipeline",),
    ),
)


def bria_fibo2(pipe: Any) -> Family:
    """FIBO 2: FLUX.2's latents, states of several layers of its text encoder, captions of unequal length.

    Its pipeline can show the text encoder pictures of the words in a caption, from some noise level on; training and
    drawing with fera do not.
    """
    call = {"guidance_scale": 1.0, "render_text_images": False}
    return Family(
        ("processor", "text_encoder"),
        reader(_take, **call),
        _predict,
        latents=_latents,
        preview=from_blocks,
        encodes_alone=True,
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    """Layers lie behind words here, so that padding comes behind words."""
    text = arguments["encoder_hidden_states"].transpose(1, 2)
    return {"encoder_hidden_states": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return block_standardized(vae, pixels, vae.config.batch_norm_eps)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=noisy,
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=conditions["encoder_hidden_states"].transpose(1, 2),
        encoder_attention_mask=conditions["mask"].bool() if len(noisy) > 1 else None,
        return_dict=False,
    )[0]
    return prediction


add_family("BriaFibo2Pipeline", bria_fibo2, "FIBO 2")
