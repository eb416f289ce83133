"""Bria 3.2."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.packing import pack, places, unpack
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

_PACKING = 2

add(
    "BriaTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        pipelines=("BriaPipeline",),
    ),
)


def bria(pipe: Any) -> Family:
    """Bria: FLUX's latents, T5 alone. Its pipeline counts packing as a part of the autoencoder's scale."""
    call = {"guidance_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        packing=_PACKING,
        scale=int(pipe.vae_scale_factor) // _PACKING,
        reads={"text_encoder": None},
        call=call,
        units=shifted,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // _PACKING for side in noisy.shape[2:])
    text = conditions["encoder_hidden_states"]
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        timestep=timesteps,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device),
        img_ids=places(rows, columns, noisy),
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("BriaPipeline", bria, "Bria 3.2")
