"""Helios: a long video, chunk by chunk; what was drawn before is told as a condition."""

from fera.models import layouts_video, rows
from fera.models.registry import Denoiser, add

add(
    "HeliosTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        beside=("ffn.net.0.proj", "ffn.net.2"),
        pipelines=("HeliosPipeline",),
        # One row for what was drawn before, whoever drew it.
        rows={"time_embedder": rows.unknown, "time_proj": rows.unknown},
    ),
)
