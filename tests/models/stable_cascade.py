"""Stable Cascade: two denoisers of one class, in pipelines of their own or together."""

import torch
from diffusers import (
    DDPMWuerstchenScheduler,
    StableCascadeCombinedPipeline,
    StableCascadeDecoderPipeline,
    StableCascadePriorPipeline,
    StableCascadeUNet,
)
from diffusers.pipelines.deprecated.wuerstchen import PaellaVQModel
from tiny import make_clip
from transformers import CLIPTextModelWithProjection, CLIPTokenizer

from models.case import Case
from models.inputs import embeddings

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "output_type": "latent",
}


def make_prior() -> StableCascadeUNet:
    """From text to the latent of the decoder's condition, 4 channels."""
    torch.manual_seed(0)
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(16, 16),
        num_attention_heads=(2, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        clip_image_in_channels=32,
        clip_text_in_channels=32,
        clip_text_pooled_in_channels=32,
    ).eval()


def make_decoder() -> StableCascadeUNet:
    """From that latent to the latent of the autoencoder, 4 channels."""
    torch.manual_seed(1)
    return StableCascadeUNet(
        in_channels=4,
        out_channels=4,
        conditioning_dim=32,
        block_out_channels=(16, 16),
        num_attention_heads=(-1, 2),
        down_num_layers_per_block=(1, 1),
        up_num_layers_per_block=(1, 1),
        down_blocks_repeat_mappers=(1, 1),
        up_blocks_repeat_mappers=(1, 1),
        block_types_per_layer=(
            ("SDCascadeResBlock", "SDCascadeTimestepBlock"),
            ("SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"),
        ),
        clip_text_pooled_in_channels=32,
        effnet_in_channels=4,
        pixel_mapper_in_channels=3,
        patch_size=2,
        timestep_conditioning_type=("sca",),
    ).eval()


def make_text() -> tuple[CLIPTextModelWithProjection, CLIPTokenizer]:
    """The text encoder of either stage, and its tokenizer."""
    encoder, tokenizer = make_clip()
    torch.manual_seed(2)
    return CLIPTextModelWithProjection(encoder.config).eval(), tokenizer


def make_vqgan() -> PaellaVQModel:
    """An autoencoder, which these calls do not reach."""
    return PaellaVQModel(bottleneck_blocks=1, num_vq_embeddings=2, embed_dim=8).eval()


def make_prior_pipeline() -> StableCascadePriorPipeline:
    """The first stage, latents of 8 x 12."""
    text_encoder, tokenizer = make_text()
    return StableCascadePriorPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        prior=make_prior(),
        scheduler=DDPMWuerstchenScheduler(),
        resolution_multiple=8,
    )


def make_decoder_pipeline() -> StableCascadeDecoderPipeline:
    """The second stage, latents four times as large as those it is given."""
    text_encoder, tokenizer = make_text()
    return StableCascadeDecoderPipeline(
        decoder=make_decoder(),
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=make_vqgan(),
        latent_dim_scale=4.0,
    )


def make_combined_pipeline() -> StableCascadeCombinedPipeline:
    """Both stages."""
    text_encoder, tokenizer = make_text()
    return StableCascadeCombinedPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        decoder=make_decoder(),
        scheduler=DDPMWuerstchenScheduler(),
        vqgan=make_vqgan(),
        prior_prior=make_prior(),
        prior_text_encoder=text_encoder,
        prior_tokenizer=tokenizer,
        prior_scheduler=DDPMWuerstchenScheduler(),
    )


CASES = [
    Case(
        "cascade-prior",
        make_prior_pipeline,
        CALL | {"height": 64, "width": 96},
        {"prompt": "a green tree"},
        component="prior",
        copies=2,
    ),
    Case(
        "cascade-decoder",
        make_decoder_pipeline,
        CALL | {"image_embeddings": embeddings(0, 1, 4, 4, 6)},
        {"prompt": "a green tree", "image_embeddings": embeddings(1, 1, 4, 4, 6)},
        component="decoder",
        copies=2,
    ),
]
