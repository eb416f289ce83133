"""CogView 4: guidance in two calls."""

import torch
from diffusers import CogView4Pipeline, CogView4Transformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny import make_vae

from models.case import Case
from models.inputs import awake, embeddings

CALL = {
    "prompt_embeds": embeddings(0, 1, 16, 32),
    "negative_prompt_embeds": embeddings(1, 1, 16, 32),
    "num_inference_steps": 3,
    "height": 16,
    "width": 32,
    "output_type": "latent",
}


def make_transformer() -> CogView4Transformer2DModel:
    """For 4-channel latents, text width 32."""
    torch.manual_seed(0)
    model = CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
    )
    return awake(model)


def make_pipeline() -> CogView4Pipeline:
    """For prompt embeddings."""
    return CogView4Pipeline(
        tokenizer=None,
        text_encoder=None,
        vae=make_vae(),
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES = [
    Case("cogview4", make_pipeline, CALL, {"prompt_embeds": embeddings(2, 1, 16, 32)}, calls_per_step=2),
]
