"""GLM-Image: told tokens that a language model wrote beside the text."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, GlmImagePipeline, GlmImageTransformer2DModel
from tiny import make_vae

from models.case import Case
from models.inputs import awake, embeddings

CALL = {
    "prompt": None,
    "prompt_embeds": embeddings(0, 1, 6, 32),
    "negative_prompt_embeds": embeddings(1, 1, 6, 32),
    "prior_token_ids": torch.arange(24)[None],
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_pipeline() -> GlmImagePipeline:
    """From embeddings and tokens in place of words."""
    torch.manual_seed(0)
    transformer = GlmImageTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=32,
        time_embed_dim=16,
        condition_dim=8,
        prior_vq_quantizer_codebook_size=128,
    )
    return GlmImagePipeline(
        tokenizer=None,
        processor=None,
        text_encoder=None,
        vision_language_encoder=None,
        vae=make_vae(latents_mean=[0.0] * 4, latents_std=[1.0] * 4),
        transformer=awake(transformer),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES = [
    Case(
        "glm-image",
        make_pipeline,
        CALL,
        {"prompt_embeds": embeddings(2, 1, 6, 32), "prior_token_ids": torch.arange(40, 64)[None]},
        calls_per_step=2,
    )
]
