"""CogVideoX: text to video, and image to video."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fera.models import layouts_video, rows
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.given import first_latent, given
from fera.models.prompts import prompt_settings
from fera.models.registry import FEED_FORWARD, Denoiser, add
from fera.models.video import Video, encoded_clip, folded, frames_before_channels

add(
    "CogVideoXTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.frames_first,
        beside=FEED_FORWARD,
        pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
        rows={"patch_embed.proj": rows.frames},
    ),
)

# Frames a second that it has learned.
_FRAME_RATE = 8.0
# The area of its videos, as a square.
_RESOLUTION = 576
# What the pipeline of 1.5 tells of the given frame, where its transformer asks for it.
_OFS = 2.0


def cogvideox(pipe: Any) -> Family:
    """CogVideoX: frames before channels; places are told by rotary embeddings, which the pipeline computes.

    1.5 packs frames of its latent in twos, and its pipeline leaves those out that were drawn too many, at the front:
    there a clip gets its first frame again.
    """
    call = {"guidance_scale": 1.0, "num_frames": 1}
    side = int(pipe.vae_scale_factor_spatial)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        config: Any = denoiser.config
        latents = frames_before_channels(denoiser, noisy)
        rotary = None
        if config.use_rotary_positional_embeddings:
            height, width = (pixels * side for pixels in latents.shape[3:])
            rotary = pipe._prepare_rotary_positional_embeddings(height, width, latents.shape[1], noisy.device)
        if (first := conditions.get("source_0")) is not None:
            latents = torch.cat([latents, first.unflatten(1, (latents.shape[1], -1))], dim=2)
        prediction: Tensor = denoiser(
            hidden_states=latents,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            timestep=timesteps,
            ofs=None if config.ofs_embed_dim is None else noisy.new_full((1,), _OFS),
            image_rotary_emb=rotary,
            return_dict=False,
        )[0]
        return folded(prediction)

    together = pipe.transformer.config.patch_size_t or 1

    def latents_of(vae: Any, pixels: Tensor) -> Tensor:
        latents = encoded_clip(vae, pixels).transpose(1, 2) * float(vae.config.scaling_factor)
        missing = -latents.shape[1] % together
        return folded(torch.cat([latents[:, :1]] * missing + [latents], dim=1))

    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        predict,
        scale=side,
        resolution=_RESOLUTION,
        latents=latents_of,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        reads={"text_encoder": None},
        call=call,
    )


def cogvideox_image_to_video(pipe: Any) -> Family:
    """CogVideoX that is given the first frame: as channels behind those of the latent's first frame."""
    together = pipe.transformer.config.patch_size_t or 1

    def first_of(vae: Any, frames: Sequence[Tensor], count: int) -> Tensor:
        scale = float(vae.config.scaling_factor)
        latent = first_latent(vae, frames) * (1 / scale if vae.config.invert_scale_latents else scale)
        length = 1 + (count - 1) // stride
        length += -length % together
        told = latent.new_zeros(len(latent), length, *latent.shape[1:2], *latent.shape[3:])
        told[:, 0] = latent[:, :, 0]
        return folded(told)

    stride = int(pipe.vae_scale_factor_temporal)
    return replace(cogvideox(pipe), encode=_encode, pairs=given(first_of), call={"guidance_scale": 1.0})


def _encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
    texts = pipe.encode_prompt(captions, do_classifier_free_guidance=False, device=device, **prompt_settings(pipe))[0]
    return {"encoder_hidden_states": texts}


add_family("CogVideoXPipeline", cogvideox, "CogVideoX, 1.5")
add_family("CogVideoXImageToVideoPipeline", cogvideox_image_to_video, "CogVideoX, 1.5 image to video")
