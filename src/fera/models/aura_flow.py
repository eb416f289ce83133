"""AuraFlow."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "AuraFlowTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        JOINT_ATTENTION,
        beside=(
            "ff.linear_1",
            "ff.linear_2",
            "ff.out_projection",
            "ff_context.linear_1",
            "ff_context.linear_2",
            "ff_context.out_projection",
        ),
        timestep_range=FRACTION,
        pipelines=("AuraFlowPipeline",),
    ),
)

_TIMESTEPS = 1000


def aura_flow(pipe: Any) -> Family:
    """AuraFlow: the states of padding are zero, and there is no mask."""
    call = {"guidance_scale": 1.0}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        reads={"text_encoder": None},
        call=call,
        units=shifted,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=noisy,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        timestep=timesteps / _TIMESTEPS,
        return_dict=False,
    )[0]
    return prediction


add_family("AuraFlowPipeline", aura_flow, "AuraFlow")
