"""FLUX.1."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.prompts import prompt_settings
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "FluxTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        JOINT_ATTENTION,
        timestep_range=FRACTION,
        pipelines=("FluxPipeline", "FluxImg2ImgPipeline", "FluxFillPipeline", "FluxKontextPipeline"),
    ),
)

_TIMESTEPS = 1000
# What a guidance-distilled transformer is told while it learns; 1 is what LoRA trainers settled on.
_GUIDANCE = 1.0


def flux(pipe: Any) -> Family:
    """FLUX.1, dev and schnell: latents are packed two by two into tokens."""
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return Family(
        parts,
        _encode,
        _predict,
        packing=2,
        clip=("text_encoder",),
        reads={"text_encoder_2": None},
        encode_clip=_encode_clip,
        units=shifted,
    )


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    embeds, pooled, _ = pipe.encode_prompt(captions, None, device=device, **prompt_settings(pipe))
    return {"encoder_hidden_states": embeds, "pooled_projections": pooled}


def _encode_clip(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    """CLIP makes the pooled embeddings alone; the others are T5's."""
    return {**conditions, "pooled_projections": pipe._get_clip_prompt_embeds(captions, device=device)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    batch, channels, height, width = noisy.shape
    rows, columns = height // 2, width // 2
    tokens = noisy.view(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    places = torch.zeros(rows, columns, 3, device=noisy.device, dtype=noisy.dtype)
    places[..., 1] = torch.arange(rows, device=noisy.device)[:, None]
    places[..., 2] = torch.arange(columns, device=noisy.device)
    text = conditions["encoder_hidden_states"]
    prediction: Tensor = denoiser(
        hidden_states=tokens.reshape(batch, rows * columns, 4 * channels),
        timestep=timesteps / _TIMESTEPS,
        guidance=torch.full((batch,), _GUIDANCE, device=noisy.device) if config.guidance_embeds else None,
        pooled_projections=conditions["pooled_projections"],
        encoder_hidden_states=text,
        txt_ids=torch.zeros(text.shape[1], 3, device=noisy.device, dtype=noisy.dtype),
        img_ids=places.flatten(0, 1),
        return_dict=False,
    )[0]
    return prediction.view(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(noisy.shape)


add_family("FluxPipeline", flux, "FLUX.1")
