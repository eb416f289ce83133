"""Stable Video Diffusion: frames before channels, those of the given picture behind the latent's."""

import torch
from diffusers import (
    AutoencoderKLTemporalDecoder,
    EulerDiscreteScheduler,
    StableVideoDiffusionPipeline,
    UNetSpatioTemporalConditionModel,
)
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from models.case import Case, frames_as_channels
from models.inputs import picture

CALL = {
    "image": picture(0, 32, 48),
    "num_inference_steps": 3,
    "height": 32,
    "width": 48,
    "num_frames": 3,
    "output_type": "latent",
}


def make_unet(**overrides: object) -> UNetSpatioTemporalConditionModel:
    """For latents of 4 channels, pictures seen 32 wide."""
    settings = {
        "sample_size": 32,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "cross_attention_dim": 32,
        "num_attention_heads": 4,
        "projection_class_embeddings_input_dim": 48,
        "addition_time_embed_dim": 16,
    }
    torch.manual_seed(0)
    return UNetSpatioTemporalConditionModel(**settings | overrides).eval()


def make_pipeline() -> StableVideoDiffusionPipeline:
    """With the scheduler of its releases, which scales the latent that the UNet gets."""
    unet = make_unet()
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    vision = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=224,
        intermediate_size=37,
        patch_size=56,
    )
    return StableVideoDiffusionPipeline(
        vae=vae.eval(),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            sigma_max=700.0,
            sigma_min=0.002,
            timestep_spacing="leading",
            timestep_type="continuous",
            use_karras_sigmas=True,
        ),
        feature_extractor=CLIPImageProcessor(),
    )


CASES = [
    Case("svd", make_pipeline, CALL, {"image": picture(1, 32, 48)}, frames_as_channels, component="unet", copies=2)
]
