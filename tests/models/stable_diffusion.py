"""Stable Diffusion's UNet and its variants, and SD 3's transformer."""

from typing import Any

import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)
from tiny import make_clip, make_sd3_pipeline, make_sd_pipeline, make_unet, make_vae
from transformers import CLIPTextModelWithProjection

from models.case import Case
from models.inputs import picture

CALL = {
    "prompt": "a red rocket",
    "num_images_per_prompt": 2,
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}
OTHER_PROMPT = {"prompt": "a green tree"}


def make_inpaint_pipeline() -> StableDiffusionInpaintPipeline:
    """With a UNet for the latent, the mask and the masked picture's latent."""
    components = make_sd_pipeline().components | {"unet": make_unet(in_channels=9), "scheduler": DDIMScheduler()}
    return StableDiffusionInpaintPipeline(**components, requires_safety_checker=False)


def make_edit_pipeline() -> StableDiffusionInstructPix2PixPipeline:
    """With a UNet for the latent and the given picture's latent."""
    components = make_sd_pipeline().components | {"unet": make_unet(in_channels=8)}
    return StableDiffusionInstructPix2PixPipeline(**components, requires_safety_checker=False)


def make_xl_pipeline(pipeline: Any = StableDiffusionXLPipeline, in_channels: int = 4, **more: Any) -> Any:
    """SDXL; its scheduler scales the latent that the UNet gets."""
    text_encoder, tokenizer = make_clip()
    torch.manual_seed(3)
    return pipeline(
        vae=make_vae(),
        text_encoder=text_encoder,
        text_encoder_2=CLIPTextModelWithProjection(text_encoder.config).eval(),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=make_unet(
            in_channels=in_channels,
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
        ),
        scheduler=EulerDiscreteScheduler(),
        add_watermarker=False,
        **more,
    )


def make_xl_inpaint_pipeline() -> StableDiffusionXLInpaintPipeline:
    """With a UNet for the latent, the mask and the masked picture's latent."""
    return make_xl_pipeline(StableDiffusionXLInpaintPipeline, in_channels=9)


def make_xl_edit_pipeline(**settings: Any) -> StableDiffusionXLInstructPix2PixPipeline:
    """With a UNet for the latent and the given picture's latent."""
    return make_xl_pipeline(StableDiffusionXLInstructPix2PixPipeline, in_channels=8, **settings)


CASES = [
    Case("sd", make_sd_pipeline, CALL, OTHER_PROMPT, component="unet", copies=2),
    Case(
        "sd-inpaint",
        make_inpaint_pipeline,
        CALL | {"image": picture(0), "mask_image": picture(1, mode="L")},
        OTHER_PROMPT | {"image": picture(2), "mask_image": picture(3, mode="L")},
        component="unet",
        copies=2,
    ),
    Case(
        "sd-instruct-pix2pix",
        make_edit_pipeline,
        # The size of the latent is that of the picture.
        {key: value for key, value in CALL.items() if key not in ("height", "width")} | {"image": picture(0)},
        OTHER_PROMPT | {"image": picture(1)},
        component="unet",
        copies=3,
    ),
    Case("sdxl", make_xl_pipeline, CALL, OTHER_PROMPT, component="unet", copies=2),
    Case(
        "sdxl-inpaint",
        make_xl_inpaint_pipeline,
        CALL | {"image": picture(0), "mask_image": picture(1, mode="L"), "strength": 1.0},
        OTHER_PROMPT | {"image": picture(2), "mask_image": picture(3, mode="L")},
        component="unet",
        copies=2,
    ),
    Case(
        "sdxl-instruct-pix2pix",
        make_xl_edit_pipeline,
        CALL | {"image": picture(0)},
        OTHER_PROMPT | {"image": picture(1)},
        component="unet",
        copies=3,
    ),
    Case("sd3", make_sd3_pipeline, CALL, OTHER_PROMPT, copies=2),
]
