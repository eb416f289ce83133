"""Lumina 2."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add(
    "Lumina2Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, timestep_range=(1.0, 0.0), pipelines=("Lumina2Pipeline",)),
)
