"""Kandinsky 5: pictures and videos."""

import sys
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.models.conditions import Arguments, reader
from fera.models.families import add_family
from fera.models.family import Conditions, EncodePart, Family
from fera.models.latents import shifted
from fera.models.lengths import each_length
from fera.models.prompts import prompt_settings
from fera.models.registry import Denoiser, add
from fera.models.video import Video, encoded_clip, folded


def _frames_of_pixels(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, frames, H, W, C); frames count as channels.

    Behind its own channels come those of a given picture and of a mask. A frame that is given, where the mask is 1, is
    set to zero.
    """
    config: Any = denoiser.config
    own = latent[..., : config.in_visual_dim]
    if latent.shape[-1] > 2 * config.in_visual_dim:
        own = own * (1 - latent[..., -1:])
    return own.permute(0, 1, 4, 2, 3).flatten(1, 2)


add(
    "Kandinsky5Transformer3DModel",
    Denoiser(
        "hidden_states",
        _frames_of_pixels,
        ("to_query", "to_key", "to_value", "self_attention.out_layer", "cross_attention.out_layer"),
        beside=("feed_forward.in_layer", "feed_forward.out_layer"),
        pipelines=("Kandinsky5T2IPipeline", "Kandinsky5T2VPipeline", "Kandinsky5I2VPipeline"),
    ),
)

_PARTS = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
# Frames a second that the base of videos has learned.
_FRAME_RATE = 24.0
# The area of its videos, as a square.
_RESOLUTION = 608


def kandinsky5(pipe: Any) -> Family:
    """Kandinsky 5: one frame, channels last; captions of unequal length without a mask.

    Its pipeline draws at sizes of its own alone.
    """
    call = {"guidance_scale": 1.0}
    return Family(
        _PARTS,
        reader(_take, **call),
        each_length(_predict),
        scale=int(pipe.vae_scale_factor_spatial),
        encodes_alone=True,
        encode_part=_ENCODE_PART,
        call=call,
        units=shifted,
    )


def kandinsky5_video(pipe: Any) -> Family:
    """Kandinsky 5 for videos: where it takes a given frame, its channels and those of its mask are zeros."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    side = int(pipe.vae_scale_factor_spatial)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        config: Any = denoiser.config
        latents = noisy.unflatten(1, (-1, config.in_visual_dim)).permute(0, 1, 3, 4, 2)
        height, width = latents.shape[2:4]
        if config.visual_cond:
            latents = torch.cat([latents, torch.zeros_like(latents), torch.zeros_like(latents[..., :1])], dim=-1)
        prediction = _predict_frames(
            denoiser,
            latents,
            timesteps,
            conditions,
            scale_factor=pipe._get_scale_factor(height * side, width * side),
            sparse_params=pipe.get_sparse_params(latents, noisy.device),
        )
        return prediction.permute(0, 1, 4, 2, 3).flatten(1, 2)

    def latents_of(vae: Any, pixels: Tensor) -> Tensor:
        return folded(encoded_clip(vae, pixels).transpose(1, 2)) * float(vae.config.scaling_factor)

    return Family(
        _PARTS,
        reader(_take, **call),
        each_length(predict),
        scale=side,
        resolution=_RESOLUTION,
        latents=latents_of,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        encodes_alone=True,
        encode_part=_ENCODE_PART,
        call=call,
    )


def _take(arguments: Arguments) -> dict[str, Tensor]:
    return _told(arguments["encoder_hidden_states"], arguments["pooled_projections"])


def _told(text: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    return {
        "encoder_hidden_states": text,
        "pooled_projections": pooled,
        "mask": torch.ones(text.shape[:2], device=text.device),
    }


def _cleaned(pipe: Any, captions: list[str]) -> list[str]:
    """Captions as its pipeline cleans prompts, before both of its encoders."""
    return [sys.modules[type(pipe).__module__].prompt_clean(caption) for caption in captions]


def _encode_qwen(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    text, _ = pipe._encode_prompt_qwen(_cleaned(pipe, captions), device=device, **prompt_settings(pipe))
    told = _told(text, conditions["pooled_projections"])
    return {name: told[name] for name in ("encoder_hidden_states", "mask")}


def _encode_clip(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    return {"pooled_projections": pipe._encode_prompt_clip(_cleaned(pipe, captions), device=device)}


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    pixels = noisy.permute(0, 2, 3, 1)[:, None]
    return _predict_frames(denoiser, pixels, timesteps, conditions, scale_factor=[1.0, 1.0, 1.0])[:, 0].permute(
        0, 3, 1, 2
    )


def _predict_frames(
    denoiser: nn.Module, latents: Tensor, timesteps: Tensor, conditions: Conditions, **settings: Any
) -> Tensor:
    """For latents (B, T, H, W, C), and as them."""
    config: Any = denoiser.config
    text = conditions["encoder_hidden_states"]
    sides = [side // patch for side, patch in zip(latents.shape[1:4], config.patch_size, strict=True)]
    prediction: Tensor = denoiser(
        hidden_states=latents,
        encoder_hidden_states=text,
        pooled_projections=conditions["pooled_projections"],
        timestep=timesteps.to(latents.dtype),
        visual_rope_pos=[torch.arange(side, device=latents.device) for side in sides],
        text_rope_pos=torch.arange(text.shape[1], device=latents.device),
        return_dict=False,
        **settings,
    )
    return prediction


_ENCODE_PART: dict[tuple[str, ...], EncodePart] = {
    ("text_encoder",): _encode_qwen,
    ("text_encoder_2",): _encode_clip,
}

add_family("Kandinsky5T2IPipeline", kandinsky5, "Kandinsky 5")
add_family("Kandinsky5T2VPipeline", kandinsky5_video, "Kandinsky 5 video")
