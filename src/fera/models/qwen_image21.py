"""Qwen-Image 2.1."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import rows
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.layouts import unpack
from fera.models.lengths import each_length
from fera.models.pictures import standardized
from fera.models.previews import from_standardized
from fera.models.registry import FRACTION, Denoiser, add

_TIMESTEPS = 1000
# Pixels of the latent a place that the text's sequence holds for them.
_PIXELS_A_PLACE = 4


def _last_picture(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, L, C), a pixel a token, with the sizes of its pictures in `img_shapes`: (frames, height, width).

    References come first; the last picture is the one that is drawn.
    """
    _, height, width = arguments["img_shapes"][0][-1]
    return unpack(latent[:, -height * width :], height, width, side=1)


add(
    "QwenImage21Transformer2DModel",
    Denoiser(
        "hidden_states",
        _last_picture,
        beside=("img_mlp.gate_layer", "img_mlp.proj", "img_mlp.out"),
        timestep_range=FRACTION,
        pipelines=("QwenImage21Pipeline",),
        # These see a timestep a sample, and one of zero that all samples share.
        rows=dict.fromkeys(("time_text_embed", "modulation", "norm_out"), rows.unknown),
    ),
)


def qwen_image21(pipe: Any) -> Family:
    """Qwen-Image 2.1: a pixel a token, latents of pictures with opacity, captions of one length at a time.

    Places of the picture come behind those of the text, so padding would move them.
    """
    call = {"true_cfg_scale": 1.0}
    return Family(
        ("processor", "text_encoder"),
        reader(_take, **call),
        each_length(_predict),
        packing=2,
        latents=_latents,
        preview=from_standardized,
        encodes_alone=True,
        guidance="true_cfg_scale",
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["encoder_hidden_states"]
    return {"encoder_hidden_states": text, "mask": torch.ones(text.shape[:2], device=text.device)}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """Of opaque pictures."""
    return standardized(vae, torch.cat([pixels, torch.ones_like(pixels[:, :1])], dim=1))


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    batch, _, height, width = noisy.shape
    text = conditions["encoder_hidden_states"]
    places = torch.zeros(batch, text.shape[1] + height * width // _PIXELS_A_PLACE, device=noisy.device)
    places[:, text.shape[1] :] = 1
    prediction: Tensor = denoiser(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=text,
        img_shapes=[[(1, height, width)]] * batch,
        img_mask=places.bool(),
        return_dict=False,
    )[0]
    # Those of the text come first.
    return unpack(prediction[:, -height * width :], height, width, side=1)


add_family("QwenImage21Pipeline", qwen_image21, "Qwen-Image 2.1")
