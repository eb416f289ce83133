"""LTX-Video and LTX-2."""

from fera.models import layouts_video, rows
from fera.models.registry import Denoiser, add

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
