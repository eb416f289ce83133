"""CogVideoX."""

from fera.models import layouts_video, rows
from fera.models.registry import Denoiser, add

add(
    "CogVideoXTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.frames_first,
        pipelines=("CogVideoXPipeline", "CogVideoXImageToVideoPipeline"),
        rows={"patch_embed.proj": rows.frames},
    ),
)
