"""Wan 2.1 and 2.2."""

from fera.models import layouts_video
from fera.models.registry import Denoiser, add

add(
    "WanTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, pipelines=("WanPipeline", "WanImageToVideoPipeline")),
)
