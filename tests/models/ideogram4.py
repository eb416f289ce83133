"""Ideogram 4: text and picture in one sequence; another transformer for pictures without a caption."""

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)
from tiny_texts import make_qwen3_vl, make_tokenizer
from torch import Tensor

from models.case import Case
from models.ernie_image import make_vae
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "guidance_scale": 2.0,
    "guidance_schedule": None,
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "max_sequence_length": 64,
    "output_type": "latent",
}


def make_transformer(seed: int) -> Ideogram4Transformer2DModel:
    """For 4-channel latents and 13 layers of text 8 wide."""
    torch.manual_seed(seed)
    model = Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        intermediate_size=32,
        adaln_dim=16,
        llm_features_dim=13 * 8,
        mrope_section=(4, 2, 2),
    )
    return awake(model)


def make_pipeline() -> Ideogram4Pipeline:
    """With both transformers."""
    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(),
        text_encoder=make_qwen3_vl(36, width=8),
        tokenizer=make_tokenizer(),
        transformer=make_transformer(0),
        unconditional_transformer=make_transformer(1),
    )


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """As the pipeline decodes them: pixels of a block come before channels."""
    height, width = (CALL[side] // 4 for side in ("height", "width"))
    blocks = latents.view(len(latents), height, width, 2, 2, -1)
    return blocks.permute(0, 5, 1, 3, 2, 4).reshape(len(latents), -1, 2 * height, 2 * width)


CASES = [Case("ideogram4", make_pipeline, CALL, OTHER_PROMPT, unpack)]
