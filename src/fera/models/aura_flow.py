"""AuraFlow."""

from fera.models import layouts
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "AuraFlowTransformer2DModel",
    Denoiser(
        "hidden_states", layouts.own_channels, JOINT_ATTENTION, timestep_range=FRACTION, pipelines=("AuraFlowPipeline",)
    ),
)
