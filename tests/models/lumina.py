"""Lumina-Next: timesteps count how clean a latent is."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LuminaNextDiT2DModel, LuminaPipeline
from tiny import make_vae

from models.case import Case
from models.inputs import awake, embeddings, mask

CALL = {
    "prompt_embeds": embeddings(0, 1, 6, 8),
    "prompt_attention_mask": mask(1, 6).long(),
    "negative_prompt_embeds": embeddings(1, 1, 6, 8),
    "negative_prompt_attention_mask": mask(1, 6).long(),
    "num_images_per_prompt": 1,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 64,
    "output_type": "latent",
}


def make_transformer(cross_attention_dim: int = 8) -> LuminaNextDiT2DModel:
    """Its output holds a variance too."""
    torch.manual_seed(0)
    transformer = LuminaNextDiT2DModel(
        sample_size=16,
        hidden_size=32,
        num_layers=2,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=16,
        cross_attention_dim=cross_attention_dim,
    )
    return awake(transformer)


def make_pipeline() -> LuminaPipeline:
    """From embeddings in place of words. It takes every autoencoder for one of scale 8: this one is."""
    return LuminaPipeline(
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=None,
        tokenizer=None,
    )


CASES = [Case("lumina-next", make_pipeline, CALL, {"prompt_embeds": embeddings(2, 1, 6, 8)}, copies=2)]
