"""Mochi: frames behind the channels, and timesteps that count how clean a latent is."""

import torch
from diffusers import AutoencoderKLMochi, FlowMatchEulerDiscreteScheduler, MochiPipeline, MochiTransformer3DModel
from tiny import make_t5

from models.case import Case, frames_as_channels

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 96,
    "num_frames": 13,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def make_transformer(**overrides: object) -> MochiTransformer3DModel:
    """For 12-channel latents, text width 64."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "pooled_projection_dim": 16,
        "in_channels": 12,
        "text_embed_dim": 64,
        "time_embed_dim": 4,
        "max_sequence_length": 16,
    }
    torch.manual_seed(0)
    return MochiTransformer3DModel(**settings | overrides).eval()


def make_vae() -> AutoencoderKLMochi:
    """12-channel latents at an eighth of the pictures' size and a sixth of their frames."""
    torch.manual_seed(1)
    return AutoencoderKLMochi(
        latent_channels=12,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    ).eval()


def make_pipeline() -> MochiPipeline:
    """Text to video."""
    text_encoder, tokenizer = make_t5()
    return MochiPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(invert_sigmas=True),
        vae=make_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        transformer=make_transformer(),
    )


CASES = [Case("mochi", make_pipeline, CALL, {"prompt": "a green tree"}, frames_as_channels, copies=2)]
