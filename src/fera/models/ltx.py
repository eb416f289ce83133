"""LTX-Video: text to video."""

from typing import Any

from torch import Tensor, nn

from fera.models import layouts_video, rows
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Conditions, Family
from fera.models.registry import Denoiser, add
from fera.models.video import Video, by_channel, encoded_clip, folded, frames_before_channels

add(
    "LTXVideoTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.packed_frames,
        pipelines=("LTXPipeline", "LTXImageToVideoPipeline"),
        rows={"time_embed": rows.timesteps},
    ),
)

add(
    "LTX2VideoTransformer3DModel",  # draws sound too; its video routes both
    Denoiser("hidden_states", layouts_video.packed_frames, pipelines=("LTX2Pipeline",)),
)

# What its pipeline takes for granted.
_FRAME_RATE = 25
# The area of its videos, as a square.
_RESOLUTION = 608


def ltx(pipe: Any) -> Family:
    """LTX-Video: a pixel of the latent a token; places are told in seconds and pixels."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    side = int(pipe.vae_spatial_compression_ratio)
    units = (pipe.vae_temporal_compression_ratio / _FRAME_RATE, side, side)

    def predict(denoiser: nn.Module, noisy: Tensor, timesteps: Tensor, conditions: Conditions) -> Tensor:
        latents = frames_before_channels(denoiser, noisy)
        frames, _, height, width = latents.shape[1:]
        prediction: Tensor = denoiser(
            hidden_states=latents.movedim(2, -1).flatten(1, 3),
            encoder_hidden_states=conditions["encoder_hidden_states"],
            timestep=timesteps,
            encoder_attention_mask=conditions["encoder_attention_mask"],
            num_frames=frames,
            height=height,
            width=width,
            rope_interpolation_scale=units,
            return_dict=False,
        )[0]
        return folded(prediction.unflatten(1, (frames, height, width)).movedim(-1, 2))

    names = ("encoder_hidden_states", "encoder_attention_mask")
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named(*names), **call),
        predict,
        scale=side,
        resolution=_RESOLUTION,
        latents=_latents,
        video=Video(int(pipe.vae_temporal_compression_ratio), _FRAME_RATE),
        reads={"text_encoder": None},
        call=call,
    )


def _latents(vae: Any, pixels: Tensor) -> Tensor:
    """By the mean and the deviation of each channel, which are the autoencoder's buffers."""
    latents = by_channel(encoded_clip(vae, pixels), vae.latents_mean, vae.latents_std)
    return folded(latents.transpose(1, 2)) * float(vae.config.scaling_factor)


add_family("LTXPipeline", ltx, "LTX-Video")
