"""Latte."""

from fera.models import layouts_video
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "LatteTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, beside=FEED_FORWARD, pipelines=("LattePipeline",)),
)
