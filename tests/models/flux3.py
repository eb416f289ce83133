"""FLUX.3, a modular pipeline: tokens of references are arguments of their own."""

import torch
from diffusers import ClassifierFreeGuidance, FlowMatchEulerDiscreteScheduler, Flux3Transformer2DModel
from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3AutoCoreDenoiseStep
from torch import Tensor

from models.case import Case
from models.inputs import awake, embeddings
from models.modular import Modular

CALL = {
    "prompt_embeds": embeddings(0, 1, 6, 16),
    "negative_prompt_embeds": embeddings(1, 1, 6, 16),
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
}


def make_pipeline() -> Modular:
    """The steps that denoise, from embeddings in place of words and of references."""
    torch.manual_seed(0)
    transformer = Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
    )
    return Modular(
        Flux3AutoCoreDenoiseStep(),
        "latents",
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=6.93),
        guider=ClassifierFreeGuidance(guidance_scale=3.0),
    )


def unpack(pipe: Modular, latents: Tensor) -> Tensor:
    """Tokens on a grid, each 2 x 2 pixels of the autoencoder's latent."""
    height, width = (CALL[side] // 16 for side in ("height", "width"))
    blocks = latents.reshape(len(latents), height, width, -1, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(len(latents), -1, 2 * height, 2 * width)


CASES = [
    Case("flux3", make_pipeline, CALL, {"prompt_embeds": embeddings(2, 1, 6, 16)}, unpack, calls_per_step=2),
    Case(
        "flux3-references",
        make_pipeline,
        CALL | {"image_cond_latents": [embeddings(3, 1, 16, 2, 3), embeddings(4, 1, 16, 4, 4)]},
        {"image_cond_latents": [embeddings(5, 1, 16, 2, 3), embeddings(6, 1, 16, 4, 4)]},
        unpack,
        calls_per_step=2,
    ),
]
