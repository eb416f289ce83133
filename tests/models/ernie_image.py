"""ERNIE-Image: FLUX.2's latent in blocks of 2 x 2 pixels, but not packed."""

import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    ErnieImagePipeline,
    ErnieImageTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
)
from tiny_texts import make_mistral3, make_tokenizer
from torch import Tensor

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "use_pe": False,
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_vae() -> AutoencoderKLFlux2:
    """With 4-channel latents at half the pictures' size, and statistics unlike those of a fresh one."""
    torch.manual_seed(1)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    vae.bn.running_mean.normal_()
    vae.bn.running_var.uniform_(0.5, 2)
    return vae.eval()


def make_transformer() -> ErnieImageTransformer2DModel:
    """Text 8 wide."""
    torch.manual_seed(0)
    transformer = ErnieImageTransformer2DModel(
        hidden_size=32,
        num_attention_heads=2,
        num_layers=1,
        ffn_hidden_size=32,
        in_channels=16,
        out_channels=16,
        text_in_dim=8,
        rope_axes_dim=(4, 4, 8),
    )
    return awake(transformer)


def make_pipeline() -> ErnieImagePipeline:
    """For words."""
    return ErnieImagePipeline(
        transformer=make_transformer(),
        vae=make_vae(),
        text_encoder=make_mistral3(2).model,
        tokenizer=make_tokenizer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function."""
    return pipe._unpatchify_latents(latents)


CASES = [Case("ernie-image", make_pipeline, CALL, OTHER_PROMPT, unpack, copies=2)]
