"""OmniGen: captions and references are tokens beside the latent."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add(
    "OmniGenTransformer2DModel",
    Denoiser(
        "hidden_states",
        layouts.own_channels,
        timestep_range=(1.0, 0.0),  # it counts how clean a latent is
        pipelines=("OmniGenPipeline",),
    ),
)
