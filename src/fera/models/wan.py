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
add(
    "WanVACETransformer3DModel", Denoiser("hidden_states", layouts_video.channels_first, pipelines=("WanVACEPipeline",))
)
add(
    "WanAnimateTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("WanAnimatePipeline",)),
)
add(
    "WanAnimate2Transformer3DModel",
    Denoiser("hidden_states", layouts_video.listed_videos, pipelines=("WanAnimate2ModularPipeline",)),
)

# The area of its smaller videos, as a square.
_RESOLUTION = 640
_ODD = "this Wan has a second transformer, but its pipeline says nothing of when to use it (boundary_ratio)"


def wan(pipe: Any) -> Family:
    """Wan 2.1 and 2.2: the latter with two transformers (14B), or with one that is told a timestep a token (5B)."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    expands = bool(pipe.config.expand_timesteps)
    boundary = pipe.config.boundary_ratio
    has_two = pipe.transformer is not None and pipe.transformer_2 is not None

    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        _predict_by_token if expands else predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTION,
        latents=latents_of,
        video=Video(int(pipe.vae_scale_factor_temporal), 24.0 if expands else 16.0),
        reads={"text_encoder": None},
        call=call,
        ranges={"transformer": (boundary, 1.0), "transformer_2": (0.0, boundary)} if has_two and boundary else {},
        refusal=_ODD if pipe.transformer_2 is not None and not boundary else "",
    )


def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """The prediction of a denoiser that is called as Wan's; as `Family.predict`."""
    prediction: Tensor = denoiser(
        hidden_states=frames_behind_channels(denoiser, noisy),
        timestep=timesteps,
        encoder_hidden_states=conditions["encoder_hidden_states"],
        return_dict=False,
    )[0]
    return folded(prediction)


def _predict_by_token(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
    """Told a timestep a token, (B, T L)."""
    config: Any = denoiser.config
    tokens = frames_behind_channels(denoiser, noisy)[0, 0].numel() // (config.patch_size[1] * config.patch_size[2])
    return predict(denoiser, noisy, timesteps[:, None].expand(-1, tokens), conditions)


def latents_of(vae: Any, pixels: Tensor) -> Tensor:
    """Clean latents by Wan's autoencoder; as `Family.latents`."""
    return folded(by_channel(encoded_clip(vae, pixels), vae.config.latents_mean, vae.config.latents_std))


add_family("WanPipeline", wan, "Wan 2.1, 2.2")
