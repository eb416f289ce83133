"""Bria: FLUX's layout."""

import torch
from diffusers import BriaPipeline, BriaTransformer2DModel, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from tiny import make_t5, make_vae
from torch import Tensor

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 32,
    "width": 48,
    "output_type": "latent",
}


def make_pipeline() -> BriaPipeline:
    """For 4-channel latents, text width 64."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(0)
    transformer = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        axes_dims_rope=(4, 4, 8),
    )
    return BriaPipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            shift_factor=0.1,
        ),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"], pipe.vae_scale_factor)


CASES = [Case("bria", make_pipeline, CALL, OTHER_PROMPT, unpack, copies=2)]
