"""Allegro: frames behind the channels."""

import torch
from diffusers import AllegroPipeline, AllegroTransformer3DModel, AutoencoderKLAllegro, DDIMScheduler
from tiny import make_t5

from models.case import Case, frames_as_channels

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "clean_caption": False,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 96,
    "num_frames": 8,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def make_pipeline() -> AllegroPipeline:
    """Text to video, latents of 2 frames."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(1)
    vae = AutoencoderKLAllegro(
        down_block_types=("AllegroDownBlock3D",) * 4,
        up_block_types=("AllegroUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
    )
    torch.manual_seed(0)
    transformer = AllegroTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=1,
        cross_attention_dim=24,
        sample_width=12,
        sample_height=8,
        sample_frames=2,
        caption_channels=64,
    )
    return AllegroPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=vae.eval(),
        transformer=transformer.eval(),
        scheduler=DDIMScheduler(),
    )


CASES = [Case("allegro", make_pipeline, CALL, {"prompt": "a green tree"}, frames_as_channels, copies=2)]
