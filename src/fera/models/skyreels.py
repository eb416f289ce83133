"""SkyReels V2: text to video and image to video, by Wan's parts."""

from dataclasses import replace
from typing import Any

from fera.models import layouts_video
from fera.models.conditions import named, reader
from fera.models.families import add_family
from fera.models.family import Family
from fera.models.previews import first_frame
from fera.models.registry import Denoiser, add
from fera.models.video import Video
from fera.models.wan import encode_texts, frames_as_channels, latents_of, missing_package, predict, predict_with_frames

add(
    "SkyReelsV2Transformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ffn.net.0.proj", "ffn.net.2"),
        pipelines=("SkyReelsV2Pipeline", "SkyReelsV2ImageToVideoPipeline"),
    ),
)

# Frames a second that it has learned.
_FRAME_RATE = 24.0
# The area of its smaller videos, as a square.
_RESOLUTION = 720


def skyreels(pipe: Any) -> Family:
    """SkyReels V2 whose frames have one timestep; those that force frames one after another have other pipelines."""
    call = {"guidance_scale": 1.0, "num_frames": 1}
    return Family(
        ("tokenizer", "text_encoder"),
        reader(named("encoder_hidden_states"), **call),
        predict,
        scale=int(pipe.vae_scale_factor_spatial),
        resolution=_RESOLUTION,
        latents=latents_of,
        preview=first_frame,
        video=Video(int(pipe.vae_scale_factor_temporal), _FRAME_RATE),
        reads={"text_encoder": None},
        call=call,
    )


def skyreels_image_to_video(pipe: Any) -> Family:
    """SkyReels V2 that is given the first frame, or the first and the last, as Wan 2.1 is."""
    return replace(
        skyreels(pipe),
        encode=encode_texts,
        predict=predict_with_frames,
        pairs=frames_as_channels(pipe),
        call={"guidance_scale": 1.0},
        refusal=missing_package(pipe),
    )


add_family("SkyReelsV2Pipeline", skyreels, "SkyReels V2")
add_family("SkyReelsV2ImageToVideoPipeline", skyreels_image_to_video, "SkyReels V2 image to video")
