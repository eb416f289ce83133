"""GLM-Image: told tokens that a language model wrote beside the text."""

from fera.models import layouts
from fera.models.registry import FEED_FORWARD, Denoiser, add

add(
    "GlmImageTransformer2DModel",
    Denoiser("hidden_states", layouts.own_channels, beside=FEED_FORWARD, pipelines=("GlmImagePipeline",)),
)
