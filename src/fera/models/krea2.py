"""Krea 2."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts, rows
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, places, unpack
from fera.models.pictures import standardized
from fera.models.previews import from_standardized
from fera.models.registry import FRACTION, Denoiser, add

add(
    "Krea2Transformer2DModel",
    Denoiser(
        "hidden_states",
        partial(layouts.packed_by_ids, ids="position_ids"),
        beside=("ff.gate", "ff.up", "ff.down"),
        timestep_range=FRACTION,
        pipelines=("Krea2Pipeline",),
        rows={"text_fusion.layerwise_blocks": rows.text_tokens},
    ),
)

_TIMESTEPS = 1000


def krea2(pipe: Any) -> Family:
    """Krea 2: packed latents of an autoencoder of videos, states of several layers of its text encoder."""
    call = {"guidance_scale": 0.0}  # of the difference to the negative prompt, on top
    names = ("encoder_hidden_states", "encoder_attention_mask")
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named(*names), **call),
        _predict,
        packing=2,
        latents=standardized,
        preview=from_standardized,
        call=call,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // 2 for side in noisy.shape[2:])
    text = conditions["encoder_hidden_states"]
    image_ids = places(rows, columns, torch.zeros(0, device=noisy.device))
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        encoder_hidden_states=text,
        timestep=timesteps / _TIMESTEPS,
        position_ids=torch.cat([image_ids.new_zeros(text.shape[1], 3), image_ids]),
        encoder_attention_mask=conditions["encoder_attention_mask"].bool(),
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("Krea2Pipeline", krea2, "Krea 2")
