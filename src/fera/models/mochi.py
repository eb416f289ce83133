"""Mochi: text to video."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.previews import first_frame
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, Denoiser, add
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_behind_channels

add(
    "MochiTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        beside=JOINT_FEED_FORWARD,
        timestep_range=(1000.0, 0.0),  # it counts how clean a latent is
        pipelines=("MochiPipeline",),
    ),
)

_TIMESTEPS = 1000
# Frames a second that it has learned.
_FRAME_RATE = 30.0
# The area of its videos, as a square.
_RESOLUTION = 640


def mochi(pipe: Any) -> Family:
    """Mochi: told how clean a latent is, it predicts the way from noise to the video, against that of other bases."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states", "encoder_attention_mask"), **call),
        _predict,
        scale=int(pipe.vae_spatial_scale_factor),
        resolution=_RESOLUTION,
        latents=_latents,
        preview=first_frame,
        video=Video(int(pipe.vae_temporal_scale_factor), _FRAME_RATE),
        reads={"text_encoder": None},
        call=call,
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    latents, config = encoded_clip(vae, pixels), vae.config
    if config.latents_mean is not None and config.latents_std is not None:
        latents = by_channel(latents, config.latents_mean, config.latents_std)
    return folded(latents) * float(config.scaling_factor)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    prediction: Tensor = denoiser(
        hidden_states=frames_behind_channels(denoiser, noisy),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        timestep=(_TIMESTEPS - timesteps).to(noisy.dtype),
        encoder_attention_mask=conditions["encoder_attention_mask"].bool(),
        return_dict=False,
    )[0]
    return -folded(prediction)


add_family("MochiPipeline", mochi, "Mochi")
