"""DiT: pictures of a class."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add("DiTTransformer2DModel", Denoiser("hidden_states", layouts.own_channels, pipelines=("DiTPipeline",)))
