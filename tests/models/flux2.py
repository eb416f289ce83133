"""FLUX.2: its latent is cut into 2 x 2 pixels before it is packed; reference pictures before or after its tokens."""

from typing import Any

import torch
from diffusers import (
    AutoencoderKLFlux2,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Flux2KleinKVPipeline,
    Flux2KleinPipeline,
    Flux2Pipeline,
    Flux2Transformer2DModel,
)
from torch import Tensor

from models.case import Case
from models.inputs import awake, embeddings, picture

CALL = {
    "prompt_embeds": embeddings(0, 1, 5, 32),
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}
OTHER_PROMPT = {"prompt_embeds": embeddings(1, 1, 5, 32)}
NEGATIVE_PROMPT = {"negative_prompt_embeds": embeddings(2, 1, 5, 32)}
# Reference pictures must have 64 pixels a side.
REFERENCE = {"image": [picture(0, 64, 72)]}
OTHER_REFERENCE = {"image": [picture(1, 64, 72)]}


def make_transformer(guidance_embeds: bool, **overrides: object) -> Flux2Transformer2DModel:
    """For 4-channel latents, text width 32."""
    settings = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
    }
    torch.manual_seed(0)
    return awake(Flux2Transformer2DModel(**settings | overrides, guidance_embeds=guidance_embeds))


def make_pipeline(
    pipeline: Any = Flux2Pipeline, guidance_embeds: bool = True, joint_attention_dim: int = 32
) -> DiffusionPipeline:
    """One of FLUX.2's pipelines, for prompt embeddings."""
    torch.manual_seed(1)
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D", "DownEncoderBlock2D"),
        up_block_types=("UpDecoderBlock2D", "UpDecoderBlock2D"),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=4,
    )
    return pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=vae.eval(),
        text_encoder=None,
        tokenizer=None,
        transformer=make_transformer(guidance_embeds, joint_attention_dim=joint_attention_dim),
    )


def make_klein_pipeline(joint_attention_dim: int = 32) -> Flux2KleinPipeline:
    """Guidance in two calls."""
    return make_pipeline(Flux2KleinPipeline, False, joint_attention_dim)


def make_klein_kv_pipeline() -> Flux2KleinKVPipeline:
    """Its first call has the reference's tokens before those of the picture, later calls have none."""
    return make_pipeline(Flux2KleinKVPipeline, guidance_embeds=False)


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own functions."""
    height, width = (CALL[side] // (2 * pipe.vae_scale_factor) for side in ("height", "width"))
    ids = pipe._prepare_latent_ids(latents.new_zeros(len(latents), 1, height, width))
    return pipe._unpatchify_latents(pipe._unpack_latents_with_ids(latents, ids))


CASES = [
    Case("flux2", make_pipeline, CALL, OTHER_PROMPT, unpack),
    Case("flux2-reference", make_pipeline, CALL | REFERENCE, OTHER_PROMPT | OTHER_REFERENCE, unpack),
    Case(
        "flux2-klein",
        make_klein_pipeline,
        CALL | NEGATIVE_PROMPT | REFERENCE,
        OTHER_PROMPT | OTHER_REFERENCE,
        unpack,
        calls_per_step=2,
    ),
    Case("flux2-klein-kv", make_klein_kv_pipeline, CALL | REFERENCE, OTHER_PROMPT | OTHER_REFERENCE, unpack),
]
