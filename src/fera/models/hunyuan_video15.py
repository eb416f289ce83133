"""HunyuanVideo 1.5: text to video, and image to video."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import given
from fera.models.previews import first_frame
from fera.models.prompts import QUOTED_ALONE
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, Denoiser, add
from fera.models.video import Video, encoded_clip, folded, frames_behind_channels

add(
    "HunyuanVideo15Transformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        beside=JOINT_FEED_FORWARD,
        pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    ),
)

# Frames a second that it has learned.
_FRAME_RATE = 24.0
# What its denoiser is told of a caption by its text encoders.
_TEXTS = ("encoder_hidden_states", "encoder_attention_mask", "encoder_hidden_states_2", "encoder_attention_mask_2")


def hunyuan_video15(pipe: Any) -> Family:
    """HunyuanVideo 1.5: channels of a given frame and of a mask are zeros, and so is what would be seen of it.

    The strength of guidance is a setting of its `guider`, which is a part of the pipeline.
    """
    call = {"num_frames": 1}
    seen = (int(pipe.vision_num_semantic_tokens), int(pipe.vision_states_dim))

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        latents = frames_behind_channels(denoiser, noisy)
        given_frames, mask = torch.zeros_like(latents), torch.zeros_like(latents[:, :1])
        if (first := conditions.get("source_0")) is not None:
            given_frames[:, :, 0], mask[:, :, 0] = first, 1
        image_embeds = conditions.get("image_embeds")
        prediction: Tensor = denoiser(
            hidden_states=torch.cat([latents, given_frames, mask], dim=1),
            timestep=timesteps.to(noisy.dtype),
            image_embeds=noisy.new_zeros(len(noisy), *seen) if image_embeds is None else image_embeds,
            return_dict=False,
            **{name: conditions[name] for name in names},
        )[0]
        return folded(prediction)

    names = _TEXTS
    return Family(
        ("tokenizer", "text_encoder", "tokenizer_2", "text_encoder_2"),
        reader(named(*names), **call),
        predict,
        untrained={"text_encoder_2": QUOTED_ALONE},
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=int(pipe.target_size),
        latents=_latents,
        preview=first_frame,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        guidance=None,
        call=call,
    )


def hunyuan_video15_image_to_video(pipe: Any) -> Family:
    """HunyuanVideo 1.5 that is given the first frame: as channels, and as a vision encoder sees it."""
    return replace(
        hunyuan_video15(pipe),
        encode=_encode,
        pairs=given(_first_of, see=_see, eyes=("image_encoder", "feature_extractor")),
        call={},
    )


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    text, mask, text_2, mask_2 = pipe.encode_prompt(captions, device=device, batch_size=len(captions))
    return dict(zip(_TEXTS, (text, mask, text_2, mask_2), strict=True))


def _see(pipe: Any, frames: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    return {"image_embeds": pipe.encode_image(frames[0], 1, device, pipe.image_encoder.dtype)}


def _first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    return _latents(vae, frames[0])


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    # One at a time: the attention of its autoencoder cannot take several.
    latents = torch.cat([encoded_clip(vae, one) for one in pixels.split(1)])
    return folded(latents) * float(vae.config.scaling_factor)


add_family("HunyuanVideo15Pipeline", hunyuan_video15, "HunyuanVideo 1.5")
add_family("HunyuanVideo15ImageToVideoPipeline", hunyuan_video15_image_to_video, "HunyuanVideo 1.5 image to video")
