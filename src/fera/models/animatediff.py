"""UNets of videos that grew out of Stable Diffusion's: AnimateDiff, ModelScope's text to video, I2VGen-XL."""

from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add
from fera.models.video import Video, encoded_frames, folded, frames_behind_channels

add("UNetMotionModel", Denoiser("sample", layouts_video.channels_first, pipelines=("AnimateDiffPipeline",)))
add("UNet3DConditionModel", Denoiser("sample", layouts_video.channels_first, pipelines=("TextToVideoSDPipeline",)))
# The given picture's latent is an argument of its own.
add("I2VGenXLUNet", Denoiser("sample", layouts_video.channels_first, pipelines=("I2VGenXLPipeline",)))

# Frames a second that motion adapters have learned.
_FRAME_RATE = 8.0


def animatediff(pipe: Any) -> Family:
    """AnimateDiff: Stable Diffusion with a motion adapter in its UNet. Frames are encoded each by itself."""
    return Family(
        ("tokenizer", "text_encoder"),
        _encode,
        _predict,
        clip=("text_encoder",),
        latents=_latents,
        video=Video(1, _FRAME_RATE, most=int(pipe.unet.config.motion_max_seq_length)),
    )


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    texts, _ = pipe.encode_prompt(captions, device, num_images_per_prompt=1, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": texts}


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(encoded_frames(vae, pixels)) * float(vae.config.scaling_factor)


def _predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    latents = frames_behind_channels(denoiser, noisy)
    prediction: Tensor = denoiser(
        latents,
        timesteps,
        encoder_hidden_states=conditions["encoder_hidden_states"].repeat_interleave(latents.shape[2], dim=0),
        return_dict=False,
    )[0]
    return folded(prediction)


add_family("AnimateDiffPipeline", animatediff, "AnimateDiff")
