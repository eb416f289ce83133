"""Stable Video Diffusion: a picture to a video."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import given
from fera.models.pictures import encoded
from fera.models.registry import Denoiser, add
from fera.models.video import Video, encoded_frames, folded, frames_before_channels

add(
    "UNetSpatioTemporalConditionModel",
    Denoiser(
        "sample",
        layouts_video.frames_first,
        timestep_range=(-1.554, 1.638),  # log(sigma) / 4 of its scheduler
        pipelines=("StableVideoDiffusionPipeline",),
    ),
)

# What its pipeline says of a video unless it is told otherwise: frames a second, and how much moves.
_FRAME_RATE, _MOTION = 7, 127
# The area of its videos, as a square.
_RESOLUTION = 768


def stable_video(pipe: Any) -> Family:
    """Stable Video Diffusion: there are no captions, and the given frame is seen by CLIP and in further channels.

    Its pipeline adds a little noise to the picture that it is given and says how much; here it is none, for training
    and for what is drawn with it.
    """
    return Family(
        (),
        _encode,
        _predict,
        resolution=_RESOLUTION,
        latents=_latents,
        video=Video(1, float(_FRAME_RATE)),
        pairs=given(_first_of, see=_see, eyes=("image_encoder", "feature_extractor")),
        guidance="max_guidance_scale",
        call={"min_guidance_scale": 1.0, "max_guidance_scale": 1.0, "noise_aug_strength": 0.0, "fps": _FRAME_RATE},
    )


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    """Nothing is told of a caption."""
    return {}


def _see(pipe: Any, frames: Sequence[Any], device: torch.device) -> dict[str, Tensor]:
    return {"image_embeds": pipe._encode_image(frames[0], device, 1, False)}


def _first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
    """In the autoencoder's own units, unlike those that are drawn."""
    return encoded(vae, frames[0]).float()


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_frames(vae, pixels).transpose(1, 2)) * float(vae.config.scaling_factor)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    latents = frames_before_channels(denoiser, noisy)
    first = conditions["source_0"][:, None].expand(-1, latents.shape[1], -1, -1, -1)
    told = noisy.new_tensor([_FRAME_RATE - 1, _MOTION, 0.0]).expand(len(noisy), -1)
    prediction: Tensor = denoiser(
        torch.cat([latents, first], dim=2),
        timesteps,
        encoder_hidden_states=conditions["image_embeds"],
        added_time_ids=told,
        return_dict=False,
    )[0]
    return folded(prediction)


add_family("StableVideoDiffusionPipeline", stable_video, "Stable Video Diffusion")
