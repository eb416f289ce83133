"""Nucleus-Image: packed tokens, their sizes in an argument; guidance in two calls."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, NucleusMoEImagePipeline, NucleusMoEImageTransformer2DModel
from tiny_texts import make_qwen3_vl_lm, make_tokenizer
from torch import Tensor

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake
from models.qwen_image_vae import make_vae

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_pipeline() -> NucleusMoEImagePipeline:
    """For 8-channel latents, text 32 wide; the fourth of its layers is a mixture of experts."""
    torch.manual_seed(0)
    transformer = NucleusMoEImageTransformer2DModel(
        in_channels=32,
        out_channels=8,
        num_layers=5,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
        mlp_ratio=8.0,
        num_experts=2,
        moe_intermediate_dim=16,
        capacity_factors=1.0,
    )
    for name, parameter in transformer.named_parameters():
        if ".experts." in name:  # they start as whatever was in memory
            torch.nn.init.normal_(parameter, std=0.1)
    return NucleusMoEImagePipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(),
        text_encoder=make_qwen3_vl_lm(8),
        processor=make_tokenizer(),
    )


def unpack(pipe: NucleusMoEImagePipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, less its axis of one frame."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"], 2, pipe.vae_scale_factor).squeeze(2)


CASES = [Case("nucleus-image", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2)]
