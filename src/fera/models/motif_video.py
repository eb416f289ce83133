"""Motif-Video."""

from fera.models import layouts_video
from fera.models.registry import JOINT_ATTENTION, JOINT_FEED_FORWARD, SINGLE_STREAM, Denoiser, add

add(
    "MotifVideoTransformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        beside=(*JOINT_FEED_FORWARD, *SINGLE_STREAM),
        pipelines=("MotifVideoPipeline", "MotifVideoImage2VideoPipeline"),
    ),
)
