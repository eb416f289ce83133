"""Bria FIBO."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import places
from fera.models.pictures import standardized
from fera.models.previews import from_standardized
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add


def _pixels(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, L, C), a pixel a token, whose places are rows of `img_ids`: (image, row, column)."""
    return layouts.packed_by_ids(denoiser, latent, arguments, side=1)


add(
    "BriaFiboTransformer2DModel",
    Denoiser(
        "hidden_states",
        _pixels,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        pipelines=("BriaFiboPipeline",),
    ),
)


def bria_fibo(pipe: Any) -> Family:
    """FIBO: a pixel a token, states of every layer of its text encoder, captions of unequal length."""
    call = {"guidance_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        latents=standardized,
        preview=from_standardized,
        encodes_alone=True,
        reads={"text_encoder": None},
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["encoder_hidden_states"]
    return {
        "encoder_hidden_states": text,
        "layers": torch.stack(arguments["text_encoder_layers"], dim=2),
        "mask": torch.ones(text.shape[:2], device=text.device),
    }


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    batch, _, height, width = noisy.shape
    text = conditions["encoder_hidden_states"]
    attention = {}
    if batch > 1:
        mask = torch.cat([conditions["mask"].bool(), noisy.new_ones(batch, height * width).bool()], dim=1)
        attention["attention_mask"] = mask[:, None, None]
    prediction: Tensor = denoiser(
        hidden_states=noisy.flatten(2).transpose(1, 2),
        timestep=timesteps.to(noisy.dtype),
        encoder_hidden_states=text,
        text_encoder_layers=list(conditions["layers"].unbind(2)),
        joint_attention_kwargs=attention,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device),
        img_ids=places(height, width, noisy),
        return_dict=False,
    )[0]
    return prediction.transpose(1, 2).unflatten(2, (height, width))


add_family("BriaFiboPipeline", bria_fibo, "FIBO")
