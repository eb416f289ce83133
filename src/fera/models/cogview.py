"""CogView 4."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add(
    "CogView4Transformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, pipelines=("CogView4Pipeline",)),
)
