"""Mochi."""

from fera.models import layouts_video
from fera.models.registry import JOINT_ATTENTION, Denoiser, add

add(
    "MochiTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        timestep_range=(1000.0, 0.0),  # it counts how clean a latent is
        pipelines=("MochiPipeline",),
    ),
)
