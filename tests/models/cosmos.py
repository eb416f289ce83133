"""Cosmos 2: timesteps are fractions; given frames are written into the latent, and a mask says which."""

import torch
from diffusers import (
    Cosmos2TextToImagePipeline,
    Cosmos2VideoToWorldPipeline,
    CosmosTransformer3DModel,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
)
from torch import Tensor

from models import wan
from models.case import Case, frames_as_channels
from models.inputs import awake, embeddings, picture

CALL = {
    "prompt_embeds": embeddings(0, 1, 6, 32),
    "negative_prompt_embeds": embeddings(1, 1, 6, 32),
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 48,
    "output_type": "latent",
}
OTHER_PROMPT = {"prompt_embeds": embeddings(2, 1, 6, 32)}


class SafetyChecker:
    """Nothing is checked: NVIDIA's own is a package and a large model."""

    def to(self, *args: object) -> None:
        """Moves nothing."""


def components(**overrides: object) -> dict[str, object]:
    """What both pipelines share: embeddings take the place of words."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "num_layers": 1,
        "mlp_ratio": 2,
        "text_embed_dim": 32,
        "adaln_lora_dim": 4,
        "max_size": (4, 32, 32),
        "concat_padding_mask": False,  # to append it inside of the transformer takes torchvision
    }
    torch.manual_seed(0)
    return {
        "text_encoder": None,
        "tokenizer": None,
        "vae": wan.components()["vae"],
        "transformer": awake(CosmosTransformer3DModel(**settings | overrides)),
        "scheduler": FlowMatchEulerDiscreteScheduler(use_karras_sigmas=True),
        "safety_checker": SafetyChecker(),
    }


def drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Without the given frame, frames as channels."""
    return frames_as_channels(pipe, latents[:, :, 1:])


CASES = [
    Case(
        "cosmos-2",
        lambda: Cosmos2TextToImagePipeline(**components()),
        CALL,
        OTHER_PROMPT,
        frames_as_channels,
        calls_per_step=2,
    ),
    Case(
        "cosmos-2-video",
        lambda: Cosmos2VideoToWorldPipeline(**components(in_channels=17)),
        CALL | {"image": picture(0, 32, 48), "num_frames": 9},
        {"image": picture(1, 32, 48)},
        drawn,
        calls_per_step=2,
    ),
]
