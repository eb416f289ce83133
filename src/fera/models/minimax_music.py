"""MiniMax Music 3."""

from fera.models.registry import Denoiser, add
from fera.models.sound import channels_first

add(
    "MiniMaxMusic3Transformer1DModel",
    Denoiser(
        "hidden_states",
        channels_first,
        beside=("ff_in", "ff_out"),
        timestep_range=(1.0, 0.0),  # it counts how clean a latent is
        pipelines=("MiniMaxMusic3ModularPipeline",),
    ),
)
