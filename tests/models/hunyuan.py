"""Hunyuan-DiT, and HunyuanImage with its guidance in two calls."""

import torch
from diffusers import (
    AutoencoderKLHunyuanImage,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    HunyuanDiT2DModel,
    HunyuanDiTPipeline,
    HunyuanImagePipeline,
    HunyuanImageTransformer2DModel,
)
from diffusers.guiders import AdaptiveProjectedMixGuidance
from tiny import make_vae
from torch import Tensor

from models.case import Case
from models.inputs import awake, embeddings, mask


def dit_prompt(seed: int, name: str = "prompt") -> dict[str, Tensor]:
    """Embeddings of both text encoders and their masks, as Hunyuan-DiT names them."""
    return {
        f"{name}_embeds": embeddings(seed, 1, 5, 32),
        f"{name}_attention_mask": mask(1, 5).long(),
        f"{name}_embeds_2": embeddings(seed + 100, 1, 6, 32),
        f"{name}_attention_mask_2": mask(1, 6).long(),
    }


def image_prompt(seed: int, name: str = "prompt") -> dict[str, Tensor]:
    """Embeddings of both text encoders and their masks, as HunyuanImage names them."""
    return {
        f"{name}_embeds": embeddings(seed, 1, 5, 32),
        f"{name}_embeds_mask": mask(1, 5).long(),
        f"{name}_embeds_2": embeddings(seed + 100, 1, 6, 32),
        f"{name}_embeds_mask_2": mask(1, 6).long(),
    }


DIT_CALL = {
    **dit_prompt(0),
    **dit_prompt(1, "negative_prompt"),
    "num_inference_steps": 3,
    "height": 64,  # it takes every autoencoder for one of scale 8
    "width": 96,
    "use_resolution_binning": False,
    "output_type": "latent",
}
IMAGE_CALL = {
    **image_prompt(0),
    **image_prompt(1, "negative_prompt"),
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_dit(**overrides: object) -> HunyuanDiT2DModel:
    """For 4-channel latents, text widths 32."""
    settings = {
        "sample_size": 8,
        "num_layers": 2,
        "patch_size": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "in_channels": 4,
        "hidden_size": 32,
        "cross_attention_dim": 32,
        "cross_attention_dim_t5": 32,
        "pooled_projection_dim": 16,
        "text_len": 5,
        "text_len_t5": 6,
    }
    torch.manual_seed(0)
    return awake(HunyuanDiT2DModel(**settings | overrides))


def make_dit_pipeline(**overrides: object) -> HunyuanDiTPipeline:
    """For prompt embeddings; settings are the transformer's."""
    transformer = make_dit(**overrides)
    vae = make_vae(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    return HunyuanDiTPipeline(
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
        scheduler=DDPMScheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def make_image_transformer(**overrides: object) -> HunyuanImageTransformer2DModel:
    """For 4-channel latents, text widths 32."""
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 32,
        "text_embed_2_dim": 32,
        "rope_axes_dim": (8, 8),
    }
    torch.manual_seed(0)
    return HunyuanImageTransformer2DModel(**settings | overrides).eval()


def make_image_pipeline() -> HunyuanImagePipeline:
    """HunyuanImage 2.1, for prompt embeddings."""
    transformer = make_image_transformer()
    vae = AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=1.0,
    )
    return HunyuanImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=awake(transformer),
        guider=AdaptiveProjectedMixGuidance(),
    )


CASES = [
    Case("hunyuan-dit", make_dit_pipeline, DIT_CALL, dit_prompt(2), copies=2),
    Case("hunyuan-image", make_image_pipeline, IMAGE_CALL, image_prompt(2), calls_per_step=2),
]
