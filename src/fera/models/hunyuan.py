"""HunyuanDiT and HunyuanImage."""

from fera.models import layouts
from fera.models.registry import JOINT_ATTENTION, Denoiser, add

add(
    "HunyuanDiT2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("HunyuanDiTPipeline",)),
)

add(
    "HunyuanImageTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, JOINT_ATTENTION, pipelines=("HunyuanImagePipeline",)),
)
