"""Wan: text to video."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_behind_channels

add(
    "WanTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("WanPipeline", "WanImageToVideoPipeline")),
)

# The area of its smaller videos, as a square.
_RESOLUTION = 640
_TWO = (
    "this Wan has two transformers, each for noise levels of its own; fera trains bases that have one: Wan 2.1, or the "
    "one of 5 billion parameters of Wan 2.2"
)


def wan(pipe: Any) -> Family:
    """Wan 2.1, and 2.2 with 5 billion parameters, which is told a timestep a token."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    expands = bool(pipe.config.expand_timesteps)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        config: Any = denoiser.config
        frames = frames_behind_channels(denoiser, noisy)
        if expands:
            tokens = frames[0, 0].numel() // (config.patch_size[1] * config.patch_size[2])
            timesteps = timesteps[:, None].expand(-1, tokens)
        prediction: Tensor = denoiser(
            hidden_states=frames,
            timestep=timesteps,
            encoder_hidden_states=conditions["encoder_hidden_states"],
            return_dict=False,
        )[0]
        return folded(prediction)

    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTION,
        latents=_latents,
        video=Video(int(pipe.vae_scale_factor_temporal), 24.0 if expands else 16.0),
        reads={"text_encoder": None},
        call=call,
        refusal=_TWO if pipe.transformer is None or pipe.transformer_2 is not None else "",
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    return folded(by_channel(encoded_clip(vae, pixels), vae.config.latents_mean, vae.config.latents_std))


add_family("WanPipeline", wan, "Wan 2.1, 2.2 (5B)")
