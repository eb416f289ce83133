"""Kandinsky 5, pictures."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.latents import shifted
from fera.models.lengths import each_length
from fera.models.registry import Denoiser, add


def _frames_of_pixels(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, frames, H, W, C); frames count as channels.

    Behind its own channels come those of a given picture and of a mask.
    """
    config: Any = denoiser.config
    return latent[..., : config.in_visual_dim].permute(0, 1, 4, 2, 3).flatten(1, 2)


add(
    "Kandinsky5Transformer3DModel",
    Denoiser(
        "hidden_states",
        _frames_of_pixels,
        ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer"),
        pipelines=("Kandinsky5T2IPipeline",),
    ),
)


def kandinsky5(pipe: Any) -> Family:
    """Kandinsky 5: one frame, channels last; captions of unequal length without a mask.

    Its pipeline draws at sizes of its own alone.
    """
    call = {"guidance_scale": 1.0}
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return Family(
        parts,
        reader(_take, **call),
        each_length(_predict),
        scale=int(pipe.vae_scale_factor_spatial),
        encodes_alone=True,
        call=call,
        units=shifted,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    text = arguments["encoder_hidden_states"]
    pooled = arguments["pooled_projections"]
    return {
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "mask": torch.ones(text.shape[:2], device=text.device),
    }


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    text = conditions["encoder_hidden_states"]
    sides = [1, *(side // patch for side, patch in zip(noisy.shape[2:], config.patch_size[1:], strict=True))]
    prediction: Tensor = denoiser(
        hidden_states=noisy.permute(0, 2, 3, 1)[:, None],
        encoder_hidden_states=text,
        pooled_projections=conditions["pooled_projections"],
        timestep=timesteps.to(noisy.dtype),
        visual_rope_pos=[torch.arange(side, device=noisy.device) for side in sides],
        text_rope_pos=torch.arange(text.shape[1], device=noisy.device),
        scale_factor=[1.0, 1.0, 1.0],
        return_dict=False,
    )
    return prediction[:, 0].permute(0, 3, 1, 2)


add_family("Kandinsky5T2IPipeline", kandinsky5, "Kandinsky 5")
