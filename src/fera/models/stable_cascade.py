"""Stable Cascade: a prior and a decoder."""

from fera.models import layouts
from fera.models.registry import FRACTION, Denoiser, add

add(
    "StableCascadeUNet",
    Denoiser(
        "sample",
        layouts.own_channels,
        timestep="timestep_ratio",
        timestep_range=FRACTION,
        pipelines=("StableCascadePriorPipeline", "StableCascadeDecoderPipeline"),
    ),
)
