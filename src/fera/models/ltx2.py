"""LTX-2: text to video and sound, and image to video.

A call of the pipeline draws a video and its sound in one denoiser, whose two streams look at each other. Clips are
trained on without their sound: both streams are kept apart, as the pipeline itself keeps them for its guidance between
the two, and the stream of sound gets one token that nothing depends on. What trains are the layers of the video; those
of sound keep the weights that they have.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import given
from fera.models.ltx import behind_frame, first_of, latents_after_frame, latents_of
from fera.models.prompts import prompt_settings
from fera.models.registry import Denoiser, add
from fera.models.video import Video, folded

add(
    "LTX2VideoTransformer3DModel",  # draws sound too; its video routes both
    Denoiser(
        "hidden_states",
        layouts_video.packed_frames,
        beside=("ff.net.0.proj", "ff.net.2", "audio_ff.net.0.proj", "audio_ff.net.2"),
        pipelines=("LTX2Pipeline", "LTX2ImageToVideoPipeline"),
    ),
)

# Frames a second that its pipeline draws.
_FRAME_RATE = 24.0
# The area of its videos, as a square.
_RESOLUTION = 640
# No guidance of any kind.
_CALL = {
    "guidance_scale": 1.0,
    "stg_scale": 0.0,
    "modality_scale": 1.0,
    "guidance_rescale": 0.0,
    "audio_guidance_scale": 1.0,
    "audio_stg_scale": 0.0,
    "audio_modality_scale": 1.0,
    "audio_guidance_rescale": 0.0,
}
_TEXTS = ("encoder_hidden_states", "encoder_attention_mask")


def ltx2(pipe: Any) -> Family:
    """LTX-2: what its text encoder says goes through connectors, and is cached behind them."""
    return Family(
        ("tokenizer", "text_encoder", "connectors"),
        reader(named(*_TEXTS), num_frames=1, **_CALL),
        _predict,
        scale=int(pipe.vae_spatial_compression_ratio),
        resolution=_RESOLUTION,
        latents=latents_of,
        video=Video(int(pipe.vae_temporal_compression_ratio), _FRAME_RATE),
        call=_CALL,
    )


def ltx2_image_to_video(pipe: Any) -> Family:
    """LTX-2 that is given the first frame: it is the latent's first one, and its tokens have timestep 0."""
    return replace(ltx2(pipe), encode=_encode, latents=latents_after_frame, pairs=given(first_of))


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    texts, mask, *_ = pipe.encode_prompt(
        captions, do_classifier_free_guidance=False, device=device, **prompt_settings(pipe)
    )
    text, _, mask = pipe.connectors(texts, mask, padding_side=pipe.tokenizer.padding_side)
    return dict(zip(_TEXTS, (text, mask), strict=True))


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    config: Any = denoiser.config
    latents, video_timesteps = behind_frame(denoiser, noisy, timesteps, conditions)
    frames, _, height, width = latents.shape[1:]
    text = conditions["encoder_hidden_states"]
    prediction: Tensor = denoiser(
        hidden_states=latents.movedim(2, -1).flatten(1, 3),
        audio_hidden_states=latents.new_zeros(len(latents), 1, config.audio_in_channels),
        encoder_hidden_states=text,
        audio_encoder_hidden_states=text.new_zeros(len(text), 1, _sound_width(config)),
        timestep=video_timesteps,
        audio_timestep=timesteps,
        sigma=timesteps,
        encoder_attention_mask=conditions["encoder_attention_mask"],
        num_frames=frames,
        height=height,
        width=width,
        fps=_FRAME_RATE,
        audio_num_frames=1,
        isolate_modalities=True,
        use_cross_timestep=True,
        return_dict=False,
    )[0]
    drawn = prediction.unflatten(1, (frames, height, width)).movedim(-1, 2)
    return folded(drawn[:, 1:] if "source_0" in conditions else drawn)


def _sound_width(config: Any) -> int:
    """Of what the stream of sound is told of a caption: of LTX-2.3, whose connectors project it, the stream's own."""
    if config.use_prompt_embeddings:
        return int(config.caption_channels)
    return int(config.audio_num_attention_heads * config.audio_attention_head_dim)


add_family("LTX2Pipeline", ltx2, "LTX-2")
add_family("LTX2ImageToVideoPipeline", ltx2_image_to_video, "LTX-2 image to video")
