"""Chroma."""

from fera.models import layouts
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "ChromaTransformer2DModel",
    Denoiser(
        "hidden_states", layouts.packed_by_ids, JOINT_ATTENTION, timestep_range=FRACTION, pipelines=("ChromaPipeline",)
    ),
)
