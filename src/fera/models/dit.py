"""DiT: pictures of a class."""

from fera.models import layouts
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "DiTTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, beside=FEED_FORWARD, pipelines=("DiTPipeline",)),
)
