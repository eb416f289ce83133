"""JoyImage Edit: references before the picture that is drawn; Edit Plus: patches, and references behind it."""

from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    JoyImageEditPipeline,
    JoyImageEditPlusPipeline,
    JoyImageEditPlusTransformer3DModel,
    JoyImageEditTransformer3DModel,
)
from diffusers.pipelines.joyimage import image_processor
from diffusers.pipelines.joyimage.image_processor import JoyImageEditImageProcessor
from tiny_texts import make_qwen2_vl, make_seeing_processor
from torch import Tensor

from models import wan
from models.case import Case
from models.inputs import embeddings, mask, picture

SETTINGS = {
    "hidden_size": 32,
    "num_attention_heads": 2,
    "text_dim": 16,
    "num_layers": 1,
    "rope_dim_list": [4, 6, 6],
}
CALL = {
    "prompt": None,
    "prompt_embeds": embeddings(0, 1, 6, 16),
    "prompt_embeds_mask": mask(1, 6).long(),
    "negative_prompt_embeds": embeddings(1, 1, 6, 16),
    "negative_prompt_embeds_mask": mask(1, 6).long(),
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 64,
    "output_type": "latent",
}


def components() -> dict[str, object]:
    """What both pipelines share: embeddings take the place of words."""
    return {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": wan.components()["vae"],
        "text_encoder": None,
        "tokenizer": None,
        "processor": None,
    }


def small_pictures(pipe: Any) -> JoyImageEditImageProcessor:
    """What brings pictures to the nearest of a few sizes: diffusers' are of a million pixels."""
    image_processor.BUCKETS[64] = [(64, 64), (64, 96)]
    return JoyImageEditImageProcessor(vae_scale_factor=pipe.vae_scale_factor_spatial, basesize=64)


def make_pipeline() -> JoyImageEditPipeline:
    """One reference."""
    torch.manual_seed(0)
    pipe = JoyImageEditPipeline(**components(), transformer=JoyImageEditTransformer3DModel(**SETTINGS).eval())
    pipe.vae_image_processor = small_pictures(pipe)
    return pipe


def make_plus() -> JoyImageEditPlusPipeline:
    """Several references, which its text encoder sees too: its pipeline takes no embeddings beside them."""
    torch.manual_seed(0)
    transformer = JoyImageEditPlusTransformer3DModel(**SETTINGS | {"text_dim": 32}).eval()
    processor = make_seeing_processor()
    seeing = {"text_encoder": make_qwen2_vl(sees=processor), "tokenizer": processor, "processor": processor}
    pipe = JoyImageEditPlusPipeline(**components() | seeing, transformer=transformer)
    pipe.image_processor = small_pictures(pipe)
    return pipe


def last(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """The picture that is drawn, of (B, pictures, C, 1, H, W)."""
    return latents[:, -1, :, 0]


def first(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """The picture that is drawn, of (B, L, C, 1, 2, 2): as the pipeline joins its patches before it decodes them."""
    height, width = (CALL[side] // pipe.vae_scale_factor_spatial // 2 for side in ("height", "width"))
    patches = latents[:, : height * width].reshape(len(latents), height, width, -1, 2, 2)
    return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(latents), -1, 2 * height, 2 * width)


CASES = [
    Case(
        "joyimage-edit",
        make_pipeline,
        CALL | {"image": picture(0, 64, 64)},
        {"image": picture(1, 64, 64)},
        last,
        calls_per_step=2,
    ),
    Case(
        "joyimage-edit-plus",
        make_plus,
        {name: value for name, value in CALL.items() if "embeds" not in name}
        | {"prompt": "a red rocket", "images": [picture(0, 64, 64), picture(1, 64, 64)]},
        {"images": [picture(2, 64, 64), picture(3, 64, 64)]},
        first,
        copies=2,
    ),
]
