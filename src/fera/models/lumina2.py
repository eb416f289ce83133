"""Lumina-Image 2."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.registry import Denoiser, add

add(
    "Lumina2Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        beside=("feed_forward.linear_1", "feed_forward.linear_2", "feed_forward.linear_3"),
        timestep_range=(1.0, 0.0),
        pipelines=("Lumina2Pipeline",),
    ),
)

_TIMESTEPS = 1000


def lumina2(pipe: Any) -> Family:
    """Lumina-Image 2: its time runs from noise to picture, its velocity too."""
    call = {"guidance_scale": 1.0}
    names = ("encoder_hidden_states", "encoder_attention_mask")
    return Family(("tokenizer", "text_encoder"), reader(named(*names), **call), _predict, call=call, units=shifted)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=noisy,
        timestep=1 - timesteps / _TIMESTEPS,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_attention_mask=conditions["encoder_attention_mask"].long(),
        return_dict=False,
    )[0]
    return -prediction


add_family("Lumina2Pipeline", lumina2, "Lumina-Image 2")
