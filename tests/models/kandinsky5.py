"""Kandinsky 5: one frame, channels last; guidance in two calls."""

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5T2IPipeline,
    Kandinsky5Transformer3DModel,
)
from tiny import make_clip, make_vae
from tiny_texts import make_qwen2_vl, make_tokenizer
from torch import Tensor

from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "output_type": "latent",
}


def make_pipeline() -> Kandinsky5T2IPipeline:
    """For 4-channel latents, text widths 32; it takes every autoencoder for one of scale 8: this one is."""
    text_encoder_2, tokenizer_2 = make_clip(max_position_embeddings=77)
    torch.manual_seed(0)
    transformer = Kandinsky5Transformer3DModel(
        in_visual_dim=4,
        in_text_dim=32,
        in_text_dim2=32,
        time_dim=16,
        out_visual_dim=4,
        model_dim=32,
        ff_dim=32,
        num_text_blocks=1,
        num_visual_blocks=1,
        axes_dims=(4, 4, 8),
    )
    pipe = Kandinsky5T2IPipeline(
        transformer=awake(transformer),
        vae=make_vae(
            block_out_channels=(4, 4, 4, 4),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
        ),
        text_encoder=make_qwen2_vl(),
        tokenizer=make_tokenizer(),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )
    pipe.resolutions = [(96, 64)]  # width and height, of all that it draws
    return pipe


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """(B, 1, H, W, C)."""
    return latents[:, 0].movedim(3, 1)


CASES = [Case("kandinsky5", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2)]
