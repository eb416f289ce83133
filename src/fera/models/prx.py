"""PRX."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.prompts import WITHOUT_GRADIENTS
from fera.models.registry import FRACTION, Denoiser, add

_TIMESTEPS = 1000

add(
    "PRXTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        ("img_qkv_proj", "txt_kv_proj", "to_out.0"),
        beside=("gate_proj", "up_proj", "down_proj"),
        timestep_range=FRACTION,
        pipelines=("PRXPipeline",),
    ),
)


def prx(pipe: Any) -> Family:
    """PRX."""
    call = {"guidance_scale": 1.0, "use_resolution_binning": False}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states", "attention_mask"), **call),
        _predict,
        untrained={"text_encoder": WITHOUT_GRADIENTS},
        resolution=int(pipe.get_default_resolution()),
        call=call,
        units=shifted,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=noisy,
        timestep=timesteps / _TIMESTEPS,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        attention_mask=conditions["attention_mask"].bool(),
        return_dict=False,
    )[0]
    return prediction


add_family("PRXPipeline", prx, "PRX")
