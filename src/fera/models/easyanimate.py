"""EasyAnimate."""

from fera.models import layouts_video
from fera.models.registry import JOINT_ATTENTION, Denoiser, add

add(
    "EasyAnimateTransformer3DModel",
    Denoiser("hidden_states", layouts_video.channels_first, JOINT_ATTENTION, pipelines=("EasyAnimatePipeline",)),
)
