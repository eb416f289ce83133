"""Qwen-Image."""

from fera.models import layouts
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "QwenImageTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_shapes,
        JOINT_ATTENTION,
        timestep_range=FRACTION,
        pipelines=(
            "QwenImagePipeline",
            "QwenImageEditPipeline",
            "QwenImageEditPlusPipeline",
            "QwenImageLayeredPipeline",
        ),
    ),
)
