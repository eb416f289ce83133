"""HunyuanVideo: text to video, and image to video."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import given
from fera.models.previews import first_frame
from fera.models.prompts import prompt_settings
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add
from fera.models.video import Video, encoded_clip, folded, frames_behind_channels

add(
    "HunyuanVideoTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        pipelines=("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline"),
    ),
)
add(
    "HunyuanVideoFramepackTransformer3DModel",
    # Frames that were drawn before are arguments of their own.
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        pipelines=("HunyuanVideoFramepackPipeline",),
    ),
)

# What a guidance-distilled transformer is told while it learns, in thousandths.
_GUIDANCE = 1.0
# Frames a second that it has learned.
_FRAME_RATE = 24.0
# The area of its smaller videos, as a square.
_RESOLUTION = 720
# What its denoiser is told of a caption.
_TEXTS = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
# Of the tokens of a picture that its text encoder sees, every so manieth is told.
_SEEN_TOKENS = 4
_LEAVES_OUT = (
    "this HunyuanVideo of image to video gets the given frame in further channels, and its pipeline leaves out the "
    "first 4 frames that it draws: what they were trained on, no call of it shows. Take the release whose "
    'transformer has image_condition_type = "token_replace"'
)


def hunyuan_video(pipe: Any) -> Family:
    """HunyuanVideo: told a guidance."""
    call = {"guidance_scale": _GUIDANCE, "num_frames": 1}
    parts = ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2")
    return Family(
        parts,
        reader(named(*_TEXTS), **call),
        _predict,
        encode_part={("text_encoder",): _encode_llama, ("text_encoder_2",): _encode_clip},
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTION,
        latents=_latents,
        preview=first_frame,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        call=call,
    )


def hunyuan_video_image_to_video(pipe: Any) -> Family:
    """HunyuanVideo that is given the first frame as the latent's first one, and whose text encoder sees it."""
    replaces = pipe.transformer.config.image_condition_type == "token_replace"
    return replace(
        hunyuan_video(pipe),
        text_components=("tokenizer", "text_encoder", "image_processor", "tokenizer_2", "text_encoder_2"),
        encode=_encode_unseen,
        encode_part={},
        predict=_predict_after_frame,
        latents=_latents_after_frame,
        preview=None,
        pairs=given(_first_of, encode=_encode_seen),
        call={"guidance_scale": _GUIDANCE},
        refusal="" if replaces else _LEAVES_OUT,
    )


def _encode_llama(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    pooled = conditions["pooled_projections"]
    text, _, mask = pipe.encode_prompt(captions, device=device, pooled_prompt_embeds=pooled, **prompt_settings(pipe))
    return {"encoder_hidden_states": text, "encoder_attention_mask": mask.to(text.dtype)}


def _encode_clip(pipe: Any, captions: list[str], device: torch.device, conditions: Conditions) -> dict[str, Tensor]:
    text, mask = conditions["encoder_hidden_states"], conditions["encoder_attention_mask"]
    _, pooled, _ = pipe.encode_prompt(captions, device=device, prompt_embeds=text, prompt_attention_mask=mask)
    return {"pooled_projections": pooled}


def _encode_seen(pipe: Any, captions: list[str], frames: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    text, pooled, mask = pipe.encode_prompt(
        image=frames[0], prompt=captions, device=device, image_embed_interleave=_SEEN_TOKENS, **prompt_settings(pipe)
    )
    return dict(zip(_TEXTS, (text, mask, pooled), strict=True))


def _encode_unseen(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    raise FeraError(f"a {type(pipe).__name__} reads captions together with the frames that it is given")


def _first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    return _latents(vae, frames[0])


def _latents_after_frame(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_clip(vae, pixels)[:, :, 1:]) * float(vae.config.scaling_factor)


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_clip(vae, pixels)) * float(vae.config.scaling_factor)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    return folded(_called(denoiser, frames_behind_channels(denoiser, noisy), timesteps, conditions))


def _predict_after_frame(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    latents = torch.cat([conditions["source_0"][:, :, None], frames_behind_channels(denoiser, noisy)], dim=2)
    return folded(_called(denoiser, latents, timesteps, conditions)[:, :, 1:])


def _called(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    guidance = torch.full((len(noisy),), 1000 * _GUIDANCE, device=noisy.device, dtype=noisy.dtype)
    prediction: Tensor = denoiser(
        hidden_states=noisy,
        timestep=timesteps.to(noisy.dtype),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        encoder_attention_mask=conditions["encoder_attention_mask"],
        pooled_projections=conditions["pooled_projections"],
        guidance=guidance if config.guidance_embeds else None,
        return_dict=False,
    )[0]
    return prediction


add_family("HunyuanVideoPipeline", hunyuan_video, "HunyuanVideo")
add_family("HunyuanVideoImageToVideoPipeline", hunyuan_video_image_to_video, "HunyuanVideo image to video")
