"""HunyuanImage 2.1."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.prompts import QUOTED_ALONE
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

add(
    "HunyuanImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        pipelines=("HunyuanImagePipeline",),
    ),
)

_TEXT = (
    "encoder_hidden_states",
    "encoder_attention_mask",
    "encoder_hidden_states_2",
    "encoder_attention_mask_2",
)


_DISTILLED = (
    "this HunyuanImage is distilled: its transformer predicts whole steps, not the velocity that training compares it "
    "with. Train the base model; its adapters often work on the distilled one"
)


def hunyuan_image(pipe: Any) -> Family:
    """HunyuanImage: guidance is a part of its pipeline, `pipe.guider`, and no argument."""
    config: Any = pipe.transformer.config
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    distilled = config.use_meanflow or config.guidance_embeds
    return Family(
        parts,
        reader(named(*_TEXT)),
        _predict,
        untrained={"text_encoder_2": QUOTED_ALONE},
        encodes_alone=True,
        guidance="distilled_guidance_scale" if config.guidance_embeds else None,
        refusal=_DISTILLED if distilled else "",
        units=shifted,
    )


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    masks = {name: value.long() for name, value in conditions.items() if "mask" in name}
    prediction: Tensor = denoiser(
        hidden_states=noisy, timestep=timesteps.to(noisy.dtype), return_dict=False, **{**conditions, **masks}
    )[0]
    return prediction


add_family("HunyuanImagePipeline", hunyuan_image, "HunyuanImage 2.1")
