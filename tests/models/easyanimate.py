"""EasyAnimate: frames behind the channels."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLMagvit,
    EasyAnimatePipeline,
    EasyAnimateTransformer3DModel,
    FlowMatchEulerDiscreteScheduler,
)

from models.case import Case, frames_as_channels
from models.inputs import embeddings, mask

CALL = {
    "prompt_embeds": embeddings(0, 1, 6, 16),
    "prompt_attention_mask": mask(1, 6).long(),
    "negative_prompt_embeds": embeddings(1, 1, 6, 16),
    "negative_prompt_attention_mask": mask(1, 6).long(),
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "output_type": "latent",
}


def components(text_embed_dim: int = 16) -> dict[str, Any]:
    """All but what reads words."""
    torch.manual_seed(0)
    transformer = EasyAnimateTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=16,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=text_embed_dim,
        num_layers=2,
        mmdit_layers=1,
        sample_width=16,
        sample_height=16,
        patch_size=2,
    )
    torch.manual_seed(1)
    vae = AutoencoderKLMagvit(
        down_block_types=("SpatialDownBlock3D", *("SpatialTemporalDownBlock3D",) * 3),
        up_block_types=("SpatialUpBlock3D", *("SpatialTemporalUpBlock3D",) * 3),
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        spatial_group_norm=False,
    )
    return {"vae": vae.eval(), "transformer": transformer.eval(), "scheduler": FlowMatchEulerDiscreteScheduler()}


def make_pipeline() -> EasyAnimatePipeline:
    """Text to video, from embeddings in place of words."""
    return EasyAnimatePipeline(**components(), text_encoder=None, tokenizer=None)


CASES = [
    Case("easyanimate", make_pipeline, CALL, {"prompt_embeds": embeddings(2, 1, 6, 16)}, frames_as_channels, copies=2)
]
