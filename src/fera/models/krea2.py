"""Krea 2."""

from functools import partial

from fera.models import layouts, rows
from fera.models.registry import FRACTION, Denoiser, add

add(
    "Krea2Transformer2DModel",
    Denoiser(
        "hidden_states",
        partial(layouts.packed_by_ids, ids="position_ids"),
        timestep_range=FRACTION,
        pipelines=("Krea2Pipeline",),
        rows={"text_fusion.layerwise_blocks": rows.text_tokens},
    ),
)
