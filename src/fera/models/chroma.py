"""Chroma."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.packing import pack, places, unpack
from fera.models.registry import FRACTION, JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

add(
    "ChromaTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        timestep_range=FRACTION,
        pipelines=("ChromaPipeline",),
    ),
)

_TIMESTEPS = 1000


def chroma(pipe: Any) -> Family:
    """Chroma: FLUX's latents, T5 alone, and a mask over text and picture."""
    call = {"guidance_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(_take, **call),
        _predict,
        packing=2,
        reads={"text_encoder": None},
        call=call,
        no_checkpointing="diffusers 0.42 forgets the mask of captions in checkpointed blocks of Chroma",
        units=shifted,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["encoder_hidden_states"]
    return {"encoder_hidden_states": text, "attention_mask": arguments["attention_mask"][:, : text.shape[1]]}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    rows, columns = (side // 2 for side in noisy.shape[2:])
    text, mask = conditions["encoder_hidden_states"], conditions["attention_mask"]
    tokens = pack(noisy)
    prediction: Tensor = denoiser(
        hidden_states=tokens,
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        img_ids=places(rows, columns, noisy),
        attention_mask=torch.cat([mask, mask.new_ones(tokens.shape[:2])], dim=1),
        return_dict=False,
    )[0]
    return unpack(prediction, rows, columns)


add_family("ChromaPipeline", chroma, "Chroma")
