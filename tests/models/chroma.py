"""Chroma: FLUX's layout, guidance in two calls."""

import torch
from diffusers import ChromaPipeline, ChromaTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny import make_t5, make_vae
from torch import nn

from models.case import Case
from models.flux import CALL, OTHER_PROMPT, unpack


def make_transformer(**overrides: object) -> ChromaTransformer2DModel:
    """For 4-channel latents, text width 64."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "axes_dims_rope": (4, 4, 8),
        "approximator_num_channels": 16,
        "approximator_hidden_dim": 16,
        "approximator_layers": 1,
    }
    model = ChromaTransformer2DModel(**settings | overrides).eval()
    nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


def make_pipeline() -> ChromaPipeline:
    """Chroma 1."""
    text_encoder, tokenizer = make_t5()
    return ChromaPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=make_transformer(),
    )


CASES = [Case("chroma", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2)]
