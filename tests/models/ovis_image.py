"""Ovis-Image: FLUX's layout, guidance in two calls."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, OvisImagePipeline, OvisImageTransformer2DModel
from tiny import make_vae
from tiny_texts import make_qwen3, make_tokenizer

from models.case import Case
from models.flux import OTHER_PROMPT, unpack
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_transformer() -> OvisImageTransformer2DModel:
    """For 4-channel latents, text width 8."""
    torch.manual_seed(0)
    transformer = OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(4, 4, 8),
    )
    return awake(transformer)


def make_pipeline() -> OvisImagePipeline:
    """With Qwen 3 for its texts."""
    return OvisImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1),
        text_encoder=make_qwen3(1).model,
        tokenizer=make_tokenizer(),
        transformer=make_transformer(),
    )


CASES = [Case("ovis-image", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2)]
