"""Stable Audio."""

from fera.models import layouts_video
from fera.models.registry import Denoiser, add

add(
    "StableAudioDiTModel",
    Denoiser(
        "hidden_states",
        layouts_video.sound,
        timestep_range=(-1.56, 1.1),  # log(sigma) / 4 of its scheduler
        pipelines=("StableAudioPipeline",),
    ),
)
