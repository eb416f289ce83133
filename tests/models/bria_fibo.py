"""FIBO: a pixel a token."""

import torch
from diffusers import (
    AutoencoderKLWan,
    BriaFiboPipeline,
    BriaFiboTransformer2DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from tiny_texts import make_smollm3, make_tokenizer
from torch import Tensor

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "output_type": "latent",
}


def make_vae() -> AutoencoderKLWan:
    """With 4-channel latents at a sixteenth of the pictures' size, each channel with statistics of its own."""
    torch.manual_seed(1)
    vae = AutoencoderKLWan(
        base_dim=2,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=torch.linspace(-0.5, 0.5, 4).tolist(),
        latents_std=torch.linspace(0.5, 2, 4).tolist(),
        is_residual=True,
        in_channels=12,
        out_channels=12,
        patch_size=2,
        scale_factor_spatial=16,
    )
    return vae.eval()


def make_pipeline() -> BriaFiboPipeline:
    """Of text 32 wide, whose last two layers it takes together."""
    torch.manual_seed(0)
    transformer = BriaFiboTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=64,
        axes_dims_rope=(4, 4, 8),
        text_encoder_dim=32,
    )
    return BriaFiboPipeline(
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(),
        text_encoder=make_smollm3(),
        tokenizer=make_tokenizer(),
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function."""
    return pipe._unpack_latents_no_patch(latents, CALL["height"], CALL["width"], pipe.vae_scale_factor)


CASES = [Case("bria-fibo", make_pipeline, CALL, OTHER_PROMPT, unpack, copies=2)]
