"""Kandinsky 6: frames before the channels, and a given frame behind the others."""

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky6TI2VAPipeline,
    Kandinsky6Transformer3DModel,
)
from torch import Tensor

from models import hunyuan_video
from models.case import Case
from models.inputs import awake, embeddings, picture

CALL = {
    "prompt": None,
    "prompt_embeds": embeddings(0, 1, 6, 16),
    "pooled_prompt_embeds": embeddings(1, 1, 8),
    "negative_prompt_embeds": embeddings(2, 1, 6, 16),
    "negative_pooled_prompt_embeds": embeddings(3, 1, 8),
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "sample_audio": False,
    "output_type": "latent",
}


def make_pipeline() -> Kandinsky6TI2VAPipeline:
    """From embeddings in place of words, without sound."""
    torch.manual_seed(0)
    transformer = Kandinsky6Transformer3DModel(
        in_visual_dim=4,
        out_visual_dim=4,
        in_text_dim=16,
        in_text_dim2=8,
        time_dim=16,
        model_dim=24,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=2,
        axes_dims=(4, 4, 4),
        in_audio_dim=4,
        out_audio_dim=4,
        visual_token_type_num_embeddings=2,
    )
    return Kandinsky6TI2VAPipeline(
        transformer=awake(transformer),
        vae=hunyuan_video.make_vae(),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def fold(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Frames as channels, of (B, T, H, W, C)."""
    return latents.permute(0, 1, 4, 2, 3).flatten(1, 2)


def drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Without the given frame, which is the last."""
    return fold(pipe, latents[:, :-1])


CASES = [
    Case("kandinsky6", make_pipeline, CALL, {"prompt_embeds": embeddings(4, 1, 6, 16)}, fold, calls_per_step=2),
    Case(
        "kandinsky6-picture",
        make_pipeline,
        CALL | {"image": picture(0, 64, 96)},
        {"image": picture(1, 64, 96)},
        drawn,
        calls_per_step=2,
    ),
]
