"""Qwen-Image: packed tokens, the sizes of all pictures in an argument; guidance in two calls."""

import torch
from diffusers import (
    AutoencoderKLQwenImage,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    QwenImageEditPipeline,
    QwenImageEditPlusPipeline,
    QwenImageLayeredPipeline,
    QwenImagePipeline,
    QwenImageTransformer2DModel,
)
from tiny import make_t5
from torch import Tensor, nn

from models.case import Case
from models.inputs import awake, embeddings, mask, picture

SCALE = 32  # pixels a latent pixel: editing works at a million pixels, whatever the size of the picture
LAYERS = 2


def prompt(seed: int, name: str = "prompt") -> dict[str, Tensor]:
    """Text embeddings and their mask."""
    return {f"{name}_embeds": embeddings(seed, 1, 5, 32), f"{name}_embeds_mask": mask(1, 5)}


CALL = {
    **prompt(0),
    **prompt(1, "negative_prompt"),
    "num_inference_steps": 3,
    "height": 8 * SCALE,
    "width": 12 * SCALE,
    "output_type": "latent",
}
# The layers' size is that of the given picture, stretched to 640 x 640 pixels.
LAYERED_CALL = {key: value for key, value in CALL.items() if key not in ("height", "width")} | {
    "prompt": "a red rocket",
    "layers": LAYERS,
    "output_type": "pt",  # diffusers 0.42 fails on "latent"
}


class Encoder(nn.Conv3d):
    """One convolution that cuts a picture into patches: one a level takes seconds at a million pixels."""

    def forward(self, x: Tensor, **cache: object) -> Tensor:
        return super().forward(x)


class Decoder(nn.ConvTranspose3d):
    """The way back."""

    def forward(self, x: Tensor, **cache: object) -> Tensor:
        return super().forward(x)


def make_vae(input_channels: int = 3) -> AutoencoderKLQwenImage:
    """With 8-channel latents: a picture of as many channels would pass for a latent."""
    torch.manual_seed(1)
    vae = AutoencoderKLQwenImage(
        base_dim=2,
        z_dim=8,
        dim_mult=[1, 1, 1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False] * 5,
        input_channels=input_channels,
        latents_mean=[0.0] * 8,
        latents_std=[1.0] * 8,
    )
    vae.encoder = Encoder(input_channels, 16, (1, SCALE, SCALE), (1, SCALE, SCALE))
    vae.decoder = Decoder(8, input_channels, (1, SCALE, SCALE), (1, SCALE, SCALE))
    return vae.eval()


def make_transformer(**overrides: object) -> QwenImageTransformer2DModel:
    """For 8-channel latents, text width 32."""
    settings = {
        "in_channels": 32,
        "out_channels": 8,
        "num_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 32,
        "axes_dims_rope": (4, 4, 8),
    }
    torch.manual_seed(0)
    return awake(QwenImageTransformer2DModel(**settings | overrides))


def make_pipeline() -> QwenImagePipeline:
    """For prompt embeddings."""
    return QwenImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=make_transformer(),
    )


def make_edit_pipeline() -> QwenImageEditPipeline:
    """To the tokens it appends those of the given picture."""
    return QwenImageEditPipeline(**make_pipeline().components, processor=None)


def make_edit_plus_pipeline() -> QwenImageEditPlusPipeline:
    """To the tokens it appends those of several pictures."""
    return QwenImageEditPlusPipeline(**make_pipeline().components, processor=None)


def make_layered_pipeline() -> QwenImageLayeredPipeline:
    """Draws a picture and its layers, and appends the tokens of the given picture."""
    components = make_pipeline().components | {
        "vae": make_vae(input_channels=4),
        "text_encoder": make_t5()[0],  # asked for its precision alone
        "transformer": make_transformer(use_layer3d_rope=True, use_additional_t_cond=True),
    }
    return QwenImageLayeredPipeline(**components, processor=None)


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, less its axis of one frame."""
    return pipe._unpack_latents(latents, CALL["height"], CALL["width"], pipe.vae_scale_factor).squeeze(2)


def unpack_layers(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, (B, C, layers, H, W); the layers count as channels."""
    return pipe._unpack_latents(latents, 640, 640, LAYERS, pipe.vae_scale_factor).flatten(1, 2)


CASES = [
    Case("qwen-image", make_pipeline, CALL, prompt(2), unpack, calls_per_step=2),
    Case(
        "qwen-image-edit",
        make_edit_pipeline,
        CALL | {"image": picture(0, 16, 16)},
        prompt(2) | {"image": picture(1, 16, 16)},
        unpack,
        calls_per_step=2,
    ),
    Case(
        "qwen-image-edit-plus",
        make_edit_plus_pipeline,
        CALL | {"image": [picture(0, 16, 16), picture(1, 16, 64)]},
        prompt(2) | {"image": [picture(2, 16, 16), picture(3, 16, 64)]},
        unpack,
        calls_per_step=2,
    ),
    Case(
        "qwen-image-layered",
        make_layered_pipeline,
        LAYERED_CALL | {"image": picture(0, 16, 16, "RGBA")},
        prompt(2) | {"image": picture(1, 16, 16, "RGBA")},
        unpack_layers,
        calls_per_step=2,
    ),
]
