"""FLUX.3: references are tokens of their own."""

from fera.models import layouts
from fera.models.registry import FRACTION, Denoiser, add

add(
    "Flux3Transformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.packed_by_ids,
        beside=("ff.linear_in", "ff.linear_out"),
        timestep_range=FRACTION,
        pipelines=("Flux3ModularPipeline",),
    ),
)
