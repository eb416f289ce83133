"""Kandinsky 5: one frame, channels last; guidance in two calls."""

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    Kandinsky5I2VPipeline,
    Kandinsky5T2IPipeline,
    Kandinsky5T2VPipeline,
    Kandinsky5Transformer3DModel,
)
from tiny import make_clip, make_vae
from tiny_texts import make_qwen2_vl, make_tokenizer
from torch import Tensor

from models import hunyuan_video
from models.case import Case
from models.flux import OTHER_PROMPT
from models.inputs import awake, picture

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "output_type": "latent",
}


def components(**transformer: object) -> dict[str, object]:
    """What all share, for 4-channel latents and text widths 32."""
    text_encoder_2, tokenizer_2 = make_clip(max_position_embeddings=77)
    settings = {
        "in_visual_dim": 4,
        "in_text_dim": 32,
        "in_text_dim2": 32,
        "time_dim": 16,
        "out_visual_dim": 4,
        "model_dim": 32,
        "ff_dim": 32,
        "num_text_blocks": 1,
        "num_visual_blocks": 1,
        "axes_dims": (4, 4, 8),
    }
    torch.manual_seed(0)
    return {
        "transformer": awake(Kandinsky5Transformer3DModel(**settings | transformer)),
        "text_encoder": make_qwen2_vl(),
        "tokenizer": make_tokenizer(),
        "text_encoder_2": text_encoder_2,
        "tokenizer_2": tokenizer_2,
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def make_pipeline() -> Kandinsky5T2IPipeline:
    """It takes every autoencoder for one of scale 8: this one is."""
    vae = make_vae(
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    pipe = Kandinsky5T2IPipeline(**components(), vae=vae)
    pipe.resolutions = [(96, 64)]  # width and height, of all that it draws
    return pipe


def make_video_pipeline() -> Kandinsky5T2VPipeline:
    """Its transformer has channels for a given frame."""
    return Kandinsky5T2VPipeline(**components(visual_cond=True), vae=hunyuan_video.make_vae())


def make_image_to_video() -> Kandinsky5I2VPipeline:
    """With a given frame."""
    return Kandinsky5I2VPipeline(**components(visual_cond=True), vae=hunyuan_video.make_vae())


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """(B, 1, H, W, C)."""
    return latents[:, 0].movedim(3, 1)


def drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """The frames that are drawn, all that the scheduler has, as channels."""
    return latents.permute(0, 1, 4, 2, 3).flatten(1, 2)


CASES = [
    Case("kandinsky5", make_pipeline, CALL, OTHER_PROMPT, unpack, calls_per_step=2),
    Case(
        "kandinsky5-i2v",
        make_image_to_video,
        CALL | {"image": picture(0, 64, 96), "num_frames": 9},
        {"image": picture(1, 64, 96)},
        drawn,
        calls_per_step=2,
    ),
]
