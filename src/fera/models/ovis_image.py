"""Ovis-Image."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.packing import pack, places, unpack
from fera.models.registry import FRACTION, JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

_TIMESTEPS = 1000

add(
    "OvisImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        timestep_range=FRACTION,
        pipelines=("OvisImagePipeline",),
    ),
)


def ovis_image(pipe: Any) -> Family:
    """Ovis-Image: FLUX's latents; words lie along the diagonal of the picture's places."""
    call = {"guidance_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        packing=2,
        call=call,
        units=shifted,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // 2 for side in noisy.shape[2:])
    text = conditions["encoder_hidden_states"]
    text_ids = torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype)
    text_ids[:, 1:] = torch.arange(text.shape[1], device=noisy.device)[:, None]
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=places(rows, columns, noisy),
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("OvisImagePipeline", ovis_image, "Ovis-Image")
