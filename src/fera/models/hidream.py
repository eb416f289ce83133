"""HiDream-I1."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts, rows
from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, EncodePart, Family
from fera.models.latents import shifted
from fera.models.prompts import prompt_settings
from fera.models.registry import Denoiser, add

add(
    "HiDreamImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        ("to_q", "to_k", "to_v", "to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t"),
        timestep="timesteps",
        pipelines=("HiDreamImagePipeline",),
        rows={"experts": rows.unknown},
    ),
)

_T5, _LLAMA, _POOLED = "encoder_hidden_states_t5", "encoder_hidden_states_llama3", "pooled_embeds"
_PARTS = tuple(f"{part}{number}" for number in ("", "_2", "_3", "_4") for part in ("tokenizer", "text_encoder"))


def hidream(pipe: Any) -> Family:
    """HiDream: four text encoders, states of every layer of Llama, a velocity from picture to noise.

    Its pipeline stretches every picture to as many pixels as it was made for.
    """
    call = {"guidance_scale": 1.0}
    reads = dict.fromkeys(("text_encoder", "text_encoder_2", "text_encoder_3", "text_encoder_4"))
    return Family(
        _PARTS,
        reader(_take, **call),
        _predict,
        reads=reads,
        encode_part={
            ("text_encoder", "text_encoder_2"): _part(_POOLED, "pooled_prompt_embeds"),
            ("text_encoder_3",): _part(_T5, "prompt_embeds_t5"),
            ("text_encoder_4",): _part(_LLAMA, "prompt_embeds_llama3"),
        },
        call=call,
        units=shifted,
    )


def _part(condition: str, argument: str) -> EncodePart:
    """How one condition is computed anew: the pipeline's own function is given the others."""

    def encode(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
        given = {
            "prompt_embeds_t5": conditions[_T5],
            "prompt_embeds_llama3": conditions[_LLAMA].transpose(0, 1),
            "pooled_prompt_embeds": conditions[_POOLED],
        }
        del given[argument]
        t5, _, llama, _, pooled, _ = pipe.encode_prompt(
            captions, device=device, do_classifier_free_guidance=False, **given, **prompt_settings(pipe)
        )
        made = {_T5: t5, _LLAMA: llama.transpose(0, 1), _POOLED: pooled}
        return {condition: made[condition]}

    return encode


def _take(arguments: Arguments) -> dict[str, Tensor]:
    """Llama's layers lie along its first axis."""
    layers = arguments["encoder_hidden_states_llama3"].transpose(0, 1)
    return {
        "encoder_hidden_states_t5": arguments["encoder_hidden_states_t5"],
        "encoder_hidden_states_llama3": layers,
        "pooled_embeds": arguments["pooled_embeds"],
    }


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=noisy,
        timesteps=timesteps,
        encoder_hidden_states_t5=conditions["encoder_hidden_states_t5"],
        encoder_hidden_states_llama3=conditions["encoder_hidden_states_llama3"].transpose(0, 1),
        pooled_embeds=conditions["pooled_embeds"],
        return_dict=False,
    )[0]
    if denoiser.training:
        prediction = _whole(prediction, noisy, denoiser)
    return -prediction


def _whole(patches: Tensor, like: Tensor, denoiser: nn.Module) -> Tensor:
    """Put together what the transformer leaves in patches (B, C, L, pixels of a patch) while it trains."""
    config: Any = denoiser.config
    side = config.patch_size
    batch, channels, height, width = like.shape
    rows, columns = height // side, width // side
    own = patches[:, :, : rows * columns].reshape(batch, channels, rows, columns, side, side)
    return own.permute(0, 1, 2, 4, 3, 5).reshape(like.shape)


add_family("HiDreamImagePipeline", hidream, "HiDream-I1")
