"""Denoisers that draw pictures."""

from fera.denoisers import layouts
from fera.denoisers.registry import Denoiser, add

add(
    "UNet2DConditionModel",
    Denoiser("sample", layouts.own_channels, pipelines=("StableDiffusionPipeline",)),
)
add(
    "SD3Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("StableDiffusion3Pipeline",)),
)
add(
    "FluxTransformer2DModel",
    Denoiser("hidden_states", layouts.packed_by_ids, pipelines=("FluxPipeline",)),
)
