"""Sana."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add

add(
    "SanaTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("SanaPipeline",)),
)


def sana(pipe: Any) -> Family:
    """Sana. Captions get the instruction that its pipeline gives to prompts."""
    return Family(("tokenizer", "text_encoder"), _encode, _predict)


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    instruction = inspect.signature(pipe.__call__).parameters["complex_human_instruction"].default
    embeds, mask, *_ = pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, device=device, complex_human_instruction=instruction
    )
    return {"encoder_hidden_states": embeds, "encoder_attention_mask": mask}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    scaled = timesteps * config.timestep_scale
    prediction: Tensor = denoiser(noisy, timestep=scaled, return_dict=False, **conditions)[0]
    return prediction[:, : noisy.shape[1]]


add_family("SanaPipeline", sana)
