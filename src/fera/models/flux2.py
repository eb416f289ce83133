"""FLUX.2."""

from fera.models import layouts
from fera.models.registry import FRACTION, JOINT_ATTENTION, Denoiser, add

add(
    "Flux2Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        # Single-stream blocks fuse what goes in. Their `to_out` cannot be named by its end: others' are containers.
        (*JOINT_ATTENTION, "to_qkv_mlp_proj"),
        timestep_range=FRACTION,
        pipelines=("Flux2Pipeline", "Flux2KleinPipeline", "Flux2KleinKVPipeline"),
    ),
)
