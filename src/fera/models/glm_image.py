"""GLM-Image: told tokens that a language model wrote beside the text."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add("GlmImageTransformer2DModel", Denoiser("hidden_states", layouts.own_channels, pipelines=("GlmImagePipeline",)))
