"""EasyAnimate: text to video."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import JOINT_ATTENTION, Denoiser, add
from fera.models.video import Video, encoded_clip, folded, frames_behind_channels

add(
    "EasyAnimateTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        beside=("ff.net.0.proj", "ff.net.2", "txt_ff.net.0.proj", "txt_ff.net.2"),
        pipelines=("EasyAnimatePipeline",),
    ),
)

# Frames a second that it has learned.
_FRAME_RATE = 8.0
# The area of its smaller videos, as a square.
_RESOLUTION = 512


def easyanimate(pipe: Any) -> Family:
    """EasyAnimate: captions are padded, and no mask says so, as in its pipeline."""
    call = {"guidance_scale": 1.0, "num_frames": 1, "negative_prompt": ""}  # it draws with guidance from none alone
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict,
        scale=int(pipe.vae_spatial_compression_ratio),
        resolution=_RESOLUTION,
        latents=_latents,
        video=Video(int(pipe.vae_temporal_compression_ratio), _FRAME_RATE),
        call=call,
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_clip(vae, pixels)) * float(vae.config.scaling_factor)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    latents = frames_behind_channels(denoiser, noisy)
    prediction: Tensor = denoiser(
        latents,
        timesteps.to(noisy.dtype),
        encoder_hidden_states=conditions["encoder_hidden_states"],
        return_dict=False,
    )[0]
    return folded(prediction[:, : latents.shape[1]])  # without a variance


add_family("EasyAnimatePipeline", easyanimate, "EasyAnimate")
