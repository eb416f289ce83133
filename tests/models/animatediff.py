"""UNets of videos that grew out of Stable Diffusion's: frames behind the channels."""

from typing import Any

import torch
from diffusers import (
    AnimateDiffPipeline,
    DDIMScheduler,
    I2VGenXLPipeline,
    I2VGenXLUNet,
    MotionAdapter,
    TextToVideoSDPipeline,
    UNet3DConditionModel,
)
from tiny import make_clip, make_unet, make_vae
from torch import Tensor, nn
from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

from models.case import Case, frames_as_channels
from models.inputs import awake, picture

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 16,
    "width": 24,
    "num_frames": 3,
    "output_type": "latent",
}
# Of layers that start with zeros: larger ones would make much of rounding.
_STD = 0.02
OTHER_PROMPT = {"prompt": "a green tree"}
# Of the UNets with three dimensions, which have blocks of their own.
SETTINGS = {
    "sample_size": 8,
    "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
    "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    "block_out_channels": (16, 16),
    "layers_per_block": 1,
    "cross_attention_dim": 32,
    "attention_head_dim": 4,
    "norm_num_groups": 8,
}


def components() -> dict[str, Any]:
    """What the pipelines share."""
    text_encoder, tokenizer = make_clip()
    return {"vae": make_vae(), "text_encoder": text_encoder, "tokenizer": tokenizer, "scheduler": DDIMScheduler()}


def make_animatediff() -> AnimateDiffPipeline:
    """Stable Diffusion's UNet with a motion adapter: the pipeline makes one UNet of both."""
    torch.manual_seed(4)
    adapter = MotionAdapter(
        block_out_channels=(16, 32), motion_layers_per_block=1, motion_norm_num_groups=8, motion_num_attention_heads=4
    )
    for name, parameter in adapter.named_parameters():
        if name.endswith("proj_out.weight"):  # zeros, which would hide the layers before it
            nn.init.normal_(parameter, std=_STD)
    return AnimateDiffPipeline(**components(), unet=make_unet(), motion_adapter=adapter)


def make_text_to_video() -> TextToVideoSDPipeline:
    """ModelScope's."""
    torch.manual_seed(0)
    unet = UNet3DConditionModel(**SETTINGS)
    return TextToVideoSDPipeline(**components(), unet=awake(unet, _STD))


def make_image_to_video() -> I2VGenXLPipeline:
    """I2VGen-XL: the given picture is an argument of its own."""
    torch.manual_seed(0)
    unet = I2VGenXLUNet(**SETTINGS)
    vision = CLIPVisionConfig(
        hidden_size=32,
        projection_dim=32,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        intermediate_size=37,
        patch_size=8,
    )
    return I2VGenXLPipeline(
        **components(),
        image_encoder=CLIPVisionModelWithProjection(vision).eval(),
        feature_extractor=CLIPImageProcessor(crop_size=16, size=16),
        unet=awake(unet, _STD),
    )


def gathered(pipe: Any, latents: Tensor) -> Tensor:
    """Frames, each a sample to the scheduler, as channels."""
    return frames_as_channels(pipe, latents.unflatten(0, (-1, CALL["num_frames"])).transpose(1, 2))


CASES = [
    Case("animatediff", make_animatediff, CALL, OTHER_PROMPT, frames_as_channels, component="unet", copies=2),
    Case("text-to-video-sd", make_text_to_video, CALL, OTHER_PROMPT, gathered, component="unet", copies=2),
    Case(
        "i2vgen-xl",
        make_image_to_video,
        CALL | {"image": picture(0), "clip_skip": None},
        OTHER_PROMPT | {"image": picture(1)},
        gathered,
        component="unet",
        copies=2,
    ),
]
