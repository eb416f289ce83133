"""FLUX: packed tokens, their places in position ids."""

import torch
from conftest import make_clip, make_t5, make_vae
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
)
from torch import Tensor, nn

from denoiser_cases.case import Case

CALL = {"prompt": "a red rocket", "num_inference_steps": 3, "height": 16, "width": 24, "output_type": "latent"}


def make_transformer(**overrides: object) -> FluxTransformer2DModel:
    """A FLUX transformer for 4-channel latents, text width 32."""
    settings = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    }
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**settings | overrides).eval()
    nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


def make_pipeline() -> FluxPipeline:
    """FLUX.1."""
    text_encoder, tokenizer = make_clip()
    text_encoder_2, tokenizer_2 = make_t5()
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=make_transformer(),
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"], pipe.vae_scale_factor)


CASES = [Case("flux", make_pipeline, CALL, {"prompt": "a green tree"}, unpack)]
