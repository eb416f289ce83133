"""Motif-Video: channels of a given frame and of a mask behind the latent's."""

import torch
from diffusers import (
    ClassifierFreeGuidance,
    MotifVideoImage2VideoPipeline,
    MotifVideoPipeline,
    MotifVideoTransformer3DModel,
)

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import embeddings, mask, picture

CALL = {
    "prompt_embeds": embeddings(0, 1, 6, 32),
    "prompt_attention_mask": mask(1, 6),
    "negative_prompt_embeds": embeddings(1, 1, 6, 32),
    "negative_prompt_attention_mask": mask(1, 6),
    "num_inference_steps": 3,
    "height": 32,
    "width": 48,
    "num_frames": 5,
    "output_type": "latent",
}


def components(**transformer: object) -> dict[str, object]:
    """What both pipelines share: embeddings take the place of words."""
    parts = wan.components()
    torch.manual_seed(0)
    return {
        "scheduler": parts["scheduler"],
        "vae": parts["vae"],
        "text_encoder": None,
        "tokenizer": None,
        "transformer": MotifVideoTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=1,
            num_single_layers=1,
            patch_size=1,
            text_embed_dim=32,
            rope_axes_dim=(4, 4, 4),
            **transformer,
        ).eval(),
        "guider": ClassifierFreeGuidance(guidance_scale=3.0),
        "feature_extractor": None,
    }


CASES = [
    Case(
        "motif-video",
        lambda: MotifVideoPipeline(**components()),
        CALL,
        {"prompt_embeds": embeddings(2, 1, 6, 32)},
        frames_as_channels,
        calls_per_step=2,
    ),
    Case(
        "motif-video-i2v",
        lambda: MotifVideoImage2VideoPipeline(**components()),
        CALL | {"image": picture(0, 32, 48), "prompt": None},
        {"image": picture(1, 32, 48)},
        frames_as_channels,
        calls_per_step=2,
    ),
]
