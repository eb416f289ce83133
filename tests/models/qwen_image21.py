"""Qwen-Image 2.1: a pixel a token in one sequence with the text; guidance in two calls."""

import torch
from diffusers import (
    AutoencoderKLQwenImage21,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImage21Pipeline,
    QwenImage21Transformer2DModel,
)
from tiny_texts import make_processor, make_qwen3_vl_lm
from torch import Tensor

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "",
    "true_cfg_scale": 2.0,
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "output_type": "latent",
}


def make_vae() -> AutoencoderKLQwenImage21:
    """With 4-channel latents at a sixteenth of the pictures' size, each channel with statistics of its own."""
    torch.manual_seed(1)
    vae = AutoencoderKLQwenImage21(
        base_dim=4,
        decoder_base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=torch.linspace(-0.5, 0.5, 4).tolist(),
        latents_std=torch.linspace(0.5, 2, 4).tolist(),
    )
    return vae.eval()


def make_pipeline() -> QwenImage21Pipeline:
    """Text 32 wide."""
    torch.manual_seed(0)
    transformer = QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        context_in_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return QwenImage21Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(),
        text_encoder=make_qwen3_vl_lm(2),
        processor=make_processor(),
        transformer=awake(transformer),
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, less its axis of one frame."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"], pipe.vae_scale_factor).squeeze(2)


CASES = [Case("qwen-image-2.1", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2)]
