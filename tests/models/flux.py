"""FLUX.1: packed tokens, their places in position ids."""

from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxKontextPipeline,
    FluxPipeline,
    FluxTransformer2DModel,
)
from tiny import make_clip, make_t5, make_vae
from torch import Tensor, nn

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


def make_transformer(**overrides: object) -> FluxTransformer2DModel:
    """A FLUX transformer for 4-channel latents, text width 64, pooled width 32."""
    settings = {
        "patch_size": 1,
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 64,
        "pooled_projection_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    }
    torch.manual_seed(0)
    model = FluxTransformer2DModel(**settings | overrides).eval()
    nn.init.normal_(model.proj_out.weight, std=0.1)
    return model


def make_pipeline(pipeline: Any = FluxPipeline, **overrides: object) -> DiffusionPipeline:
    """One of FLUX.1's pipelines; settings are the transformer's."""
    text_encoder, tokenizer = make_clip()
    text_encoder_2, tokenizer_2 = make_t5()
    return pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
        transformer=make_transformer(**overrides),
    )


def make_img2img_pipeline() -> FluxImg2ImgPipeline:
    """Starts from a picture."""
    return make_pipeline(FluxImg2ImgPipeline)


def make_fill_pipeline() -> FluxFillPipeline:
    """To each token it appends the masked picture's (16 channels) and the mask's (2 x 2 pixels for each of 2 x 2)."""
    return make_pipeline(FluxFillPipeline, in_channels=48, out_channels=16)


def make_kontext_pipeline() -> FluxKontextPipeline:
    """To the tokens it appends those of a reference picture."""
    return make_pipeline(FluxKontextPipeline)


def make_control_pipeline() -> FluxControlPipeline:
    """To each token it appends that of the given picture."""
    return make_pipeline(FluxControlPipeline, in_channels=32, out_channels=16)


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"], pipe.vae_scale_factor)


CASES = [
    Case("flux", make_pipeline, CALL, OTHER_PROMPT, unpack),
    Case("flux-img2img", make_img2img_pipeline, CALL | {"image": picture(0)}, OTHER_PROMPT, unpack),
    Case(
        "flux-fill",
        make_fill_pipeline,
        CALL | {"image": picture(0), "mask_image": picture(1, mode="L")},
        OTHER_PROMPT | {"image": picture(2), "mask_image": picture(3, mode="L")},
        unpack,
    ),
    Case(
        "flux-control",
        make_control_pipeline,
        CALL | {"control_image": picture(0)},
        OTHER_PROMPT | {"control_image": picture(1)},
        unpack,
    ),
    Case(
        "flux-kontext",
        make_kontext_pipeline,
        # A reference of another size than the picture; the defaults stretch both to a million pixels.
        CALL | {"image": picture(0, 24, 40), "max_area": 16 * 24, "_auto_resize": False},
        OTHER_PROMPT | {"image": picture(1, 24, 40)},
        unpack,
    ),
]
