"""Latent diffusion that enlarges a picture: its pixels are channels behind the latent's."""

import torch
from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

from models.case import Case
from models.inputs import picture

CALL = {"image": picture(0, 32, 64), "num_inference_steps": 3, "output_type": "pt"}


def make_pipeline() -> LDMSuperResolutionPipeline:
    """Latents of 3 channels, as large as the given picture."""
    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=16,
        in_channels=6,
        out_channels=3,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(16, 32),
        layers_per_block=1,
        attention_head_dim=4,
        norm_num_groups=8,
    )
    vqvae = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=3,
        num_vq_embeddings=12,
    )
    return LDMSuperResolutionPipeline(vqvae=vqvae.eval(), unet=unet.eval(), scheduler=DDIMScheduler())


CASES = [Case("ldm-super-resolution", make_pipeline, CALL, {"image": picture(1, 32, 64)}, component="unet")]
