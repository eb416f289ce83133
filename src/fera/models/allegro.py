"""Allegro."""

from fera.models import layouts_video, rows
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "AllegroTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=FEED_FORWARD,
        pipelines=("AllegroPipeline",),
        rows={"pos_embed.proj": rows.frames_behind_channels},
    ),
)
