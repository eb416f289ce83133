"""Nucleus-Image."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.packing import pack, unpack
from fera.models.pictures import standardized
from fera.models.previews import from_standardized
from fera.models.registry import ATTENTION, FRACTION, Denoiser, add

_TIMESTEPS = 1000

add(
    "NucleusMoEImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_shapes,
        (*ATTENTION, "add_k_proj", "add_v_proj"),
        timestep_range=FRACTION,
        pipelines=("NucleusMoEImagePipeline",),
    ),
)


def nucleus_image(pipe: Any) -> Family:
    """Nucleus-Image: Qwen-Image's latents, a velocity from noise to picture, captions of unequal length."""
    call = {"guidance_scale": 1.0}
    return Family(
        ("processor", "text_encoder"),
        reader(_take, **call),
        _predict,
        latents=standardized,
        preview=from_standardized,
        encodes_alone=True,
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    """A caption alone has a mask where it does not fill its last eight tokens."""
    text, mask = arguments["encoder_hidden_states"], arguments["encoder_hidden_states_mask"]
    return {
        "encoder_hidden_states": text,
        "mask": torch.ones(text.shape[:2], device=text.device) if mask is None else mask,
    }


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // 2 for side in noisy.shape[2:])
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_hidden_states_mask=conditions["mask"].bool(),
        img_shapes=[(1, rows, columns)] * len(noisy),
        return_dict=False,
    )[0]
    return -unpack(prediction, rows, columns)


add_family("NucleusMoEImagePipeline", nucleus_image, "Nucleus-Image")
