"""UNets of pictures without a text: latent diffusion that enlarges pictures, and unconditional ones."""

from fera.models import layouts
from fera.models.registry import CONVOLUTIONS, Denoiser, add

add(
    "UNet2DModel",
    Denoiser("sample", layouts.own_channels, beside=CONVOLUTIONS, pipelines=("LDMSuperResolutionPipeline",)),
)
