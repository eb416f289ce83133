"""Z-Image."""

from fera.models import layouts
from fera.models.registry import Denoiser, add

add(
    "ZImageTransformer2DModel",
    Denoiser(
        "x", layouts.listed, timestep="t", timestep_range=(1.0, 0.0), pipelines=("ZImagePipeline", "ZImageOmniPipeline")
    ),
)
