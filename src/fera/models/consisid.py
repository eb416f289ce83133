"""ConsisID: a face to a video."""

from fera.models import layouts_video, rows
from fera.models.registry import Denoiser, add

add(
    "ConsisIDTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.frames_first,
        pipelines=("ConsisIDPipeline",),
        rows={"patch_embed.proj": rows.frames},
    ),
)
