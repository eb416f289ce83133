"""Z-Image."""

from fera.models import layouts, rows
from fera.models.registry import Denoiser, add

add(
    "ZImageTransformer2DModel",
    Denoiser(
        "x",
        layouts.listed,
        timestep="t",
        timestep_range=(1.0, 0.0),
        pipelines=("ZImagePipeline", "ZImageOmniPipeline"),
        rows={
            "all_x_embedder": rows.picture_patches,
            "cap_embedder": rows.caption_tokens,
            "siglip_embedder": rows.vision_tokens,
        },
    ),
)
