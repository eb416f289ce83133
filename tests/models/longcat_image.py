"""LongCat-Image: FLUX's layout, places of the picture behind those of the text; guidance in two calls."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LongCatImagePipeline, LongCatImageTransformer2DModel
from tiny import make_vae
from tiny_texts import make_qwen2_vl, make_tokenizer

from models.case import Case
from models.flux import OTHER_PROMPT, unpack
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "enable_prompt_rewrite": False,
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_transformer() -> LongCatImageTransformer2DModel:
    """For 16-channel latents, text width 32."""
    torch.manual_seed(0)
    transformer = LongCatImageTransformer2DModel(
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return awake(transformer)


def make_pipeline() -> LongCatImagePipeline:
    """For 16-channel latents, which its pipeline has in any case."""
    return LongCatImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1, latent_channels=16),
        text_encoder=make_qwen2_vl(),
        tokenizer=make_tokenizer(),
        text_processor=make_tokenizer(),
        transformer=make_transformer(),
    )


CASES = [Case("longcat-image", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2)]
