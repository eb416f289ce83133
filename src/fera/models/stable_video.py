"""Stable Video Diffusion: a picture to a video."""

from fera.models import layouts_video
from fera.models.registry import Denoiser, add

add(
    "UNetSpatioTemporalConditionModel",
    Denoiser(
        "sample",
        layouts_video.frames_first,
        timestep_range=(-1.554, 1.638),  # log(sigma) / 4 of its scheduler
        pipelines=("StableVideoDiffusionPipeline",),
    ),
)
