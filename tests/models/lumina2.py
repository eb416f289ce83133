"""Lumina-Image 2: guidance in two calls, its time runs from 0 to 1."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, Lumina2Pipeline, Lumina2Transformer2DModel
from tiny import make_vae

from models.case import Case
from models.inputs import awake
from models.sana import prompt

CALL = {
    **prompt(0),
    **prompt(1, "negative_prompt"),
    "num_inference_steps": 3,
    "height": 64,  # it takes every autoencoder for one of scale 8
    "width": 96,
    "output_type": "latent",
}


def make_transformer(longest_text: int = 64) -> Lumina2Transformer2DModel:
    """For 4-channel latents, text width 32."""
    torch.manual_seed(0)
    model = Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        axes_dim_rope=(4, 4, 8),
        axes_lens=(longest_text, 64, 64),
        cap_feat_dim=32,
    )
    return awake(model)


def make_pipeline(longest_text: int = 64) -> Lumina2Pipeline:
    """For prompt embeddings."""
    return Lumina2Pipeline(
        transformer=make_transformer(longest_text),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1),
        text_encoder=None,
        tokenizer=None,
    )


CASES = [Case("lumina2", make_pipeline, CALL, prompt(2), calls_per_step=2)]
