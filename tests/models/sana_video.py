"""Sana-Video: frames behind the channels; image-to-video passes a timestep a frame."""

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    SanaImageToVideoPipeline,
    SanaVideoPipeline,
    SanaVideoTransformer3DModel,
)
from torch import Tensor

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import awake, embeddings, mask, picture

CALL = {
    "prompt_embeds": embeddings(0, 1, 6, 8),
    "prompt_attention_mask": mask(1, 6).long(),
    "negative_prompt": None,
    "negative_prompt_embeds": embeddings(1, 1, 6, 8),
    "negative_prompt_attention_mask": mask(1, 6).long(),
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 64,
    "frames": 9,
    "use_resolution_binning": False,
    "output_type": "latent",
}


def components(**overrides: object) -> dict[str, object]:
    """What both pipelines share: embeddings take the place of words."""
    torch.manual_seed(0)
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 12,
        "cross_attention_dim": 24,
        "caption_channels": 8,
        "sample_size": 8,
        "rope_max_seq_len": 32,
    }
    transformer = SanaVideoTransformer3DModel(**settings | overrides)
    return {
        "tokenizer": None,
        "text_encoder": None,
        "vae": wan.components()["vae"],
        "transformer": awake(transformer),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
    }


def drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Without the given frame, frames as channels."""
    return frames_as_channels(pipe, latents)


CASES = [
    Case(
        "sana-video",
        lambda: SanaVideoPipeline(**components()),
        CALL,
        {"prompt_embeds": embeddings(2, 1, 6, 8)},
        frames_as_channels,
        copies=2,
    ),
    Case(
        "sana-video-i2v",
        lambda: SanaImageToVideoPipeline(**components()),
        CALL | {"image": picture(0, 32, 64)},
        {"image": picture(1, 32, 64)},
        drawn,
        copies=2,
    ),
]
