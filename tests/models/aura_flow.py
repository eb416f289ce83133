"""AuraFlow."""

import torch
from diffusers import AuraFlowPipeline, AuraFlowTransformer2DModel, FlowMatchEulerDiscreteScheduler
from tiny import make_vae

from models.case import Case
from models.inputs import awake
from models.sana import prompt

CALL = {
    **prompt(0),
    **prompt(1, "negative_prompt"),
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}


def make_transformer(**overrides: object) -> AuraFlowTransformer2DModel:
    """For 4-channel latents, text width 32."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "sample_size": 16,
        "num_mmdit_layers": 1,
        "num_single_dit_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "caption_projection_dim": 32,
        "pos_embed_max_size": 64,
    }
    model = AuraFlowTransformer2DModel(**settings | overrides)
    return awake(model)


def make_pipeline() -> AuraFlowPipeline:
    """For prompt embeddings."""
    return AuraFlowPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=make_vae(),
        transformer=make_transformer(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES = [Case("aura-flow", make_pipeline, CALL, prompt(2), copies=2)]
