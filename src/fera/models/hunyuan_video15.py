"""HunyuanVideo 1.5."""

from fera.models import layouts_video
from fera.models.registry import JOINT_ATTENTION, Denoiser, add

add(
    "HunyuanVideo15Transformer3DModel",
    Denoiser(
        "hidden_states",
        layouts_video.channels_first,
        JOINT_ATTENTION,
        pipelines=("HunyuanVideo15Pipeline", "HunyuanVideo15ImageToVideoPipeline"),
    ),
)
