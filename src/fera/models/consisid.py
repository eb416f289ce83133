"""ConsisID: a face to a video."""

from fera.models import layouts_video, rows
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "ConsisIDTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.frames_first,
        beside=FEED_FORWARD,
        pipelines=("ConsisIDPipeline",),
        rows={"patch_embed.proj": rows.frames},
    ),
)
