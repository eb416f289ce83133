"""LongCat-Image."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.packing import pack, places, unpack
from fera.models.prompts import WITHOUT_GRADIENTS
from fera.models.registry import FRACTION, JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

_TIMESTEPS = 1000
# First ids of text and picture; places of the picture begin behind those of the longest caption.
_PICTURE = 1
_START = 512

add(
    "LongCatImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        partial(layouts.packed_by_ids, drawn=_PICTURE),
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        timestep_range=FRACTION,
        pipelines=("LongCatImagePipeline",),
    ),
)


def longcat_image(pipe: Any) -> Family:
    """LongCat-Image: FLUX's latents. Captions are not rewritten by its language model, neither are prompts."""
    call = {"guidance_scale": 1.0, "enable_prompt_rewrite": False}
    return Family(
        ("tokenizer", "text_encoder", "text_processor"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        untrained={"text_encoder": WITHOUT_GRADIENTS},
        packing=2,
        call=call,
        units=shifted,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // 2 for side in noisy.shape[2:])
    text = conditions["encoder_hidden_states"]
    # As the pipeline has them, in float32: half precision cannot tell such places apart.
    like = torch.zeros(0, device=noisy.device)
    image_ids = places(rows, columns, like) + torch.tensor([_PICTURE, _START, _START], device=noisy.device)
    text_ids = torch.zeros(text.shape[1], 3, device=noisy.device)
    text_ids[:, 1:] = torch.arange(text.shape[1], device=noisy.device)[:, None]
    prediction: Tensor = denoiser(
        hidden_states=pack(noisy),
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=text,
        txt_ids=text_ids,
        img_ids=image_ids,
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("LongCatImagePipeline", longcat_image, "LongCat-Image")
