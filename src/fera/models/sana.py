"""Sana."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.prompts import prompt_settings, with_empty
from fera.models.registry import Denoiser, add

add(
    "SanaTransformer2DModel",
    Denoiser(
        "hidden_states", layouts.own_channels, beside=("ff.conv_inverted", "ff.conv_point"), pipelines=("SanaPipeline",)
    ),
)


def sana(pipe: Any) -> Family:
    """Sana. Captions get the instruction that its pipeline gives to prompts; the empty one gets none, as there."""
    return Family(("tokenizer", "text_encoder"), encode, _predict, reads={"text_encoder": None})


def encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    """Captions by the pipeline's own function; as `Family.encode`."""
    embeds, mask, empty, empty_mask = pipe.encode_prompt(
        captions, do_classifier_free_guidance="" in captions, device=device, **prompt_settings(pipe)
    )
    return {
        "encoder_hidden_states": with_empty(captions, embeds, empty),
        "encoder_attention_mask": with_empty(captions, mask, empty_mask),
    }


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    scaled = timesteps * config.timestep_scale
    prediction: Tensor = denoiser(noisy, timestep=scaled, return_dict=False, **conditions)[0]
    return prediction[:, : noisy.shape[1]]


add_family("SanaPipeline", sana, "Sana")
