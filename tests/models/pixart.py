"""PixArt: predicts a variance too, so it has twice as many channels out as in."""

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel
from tiny import make_t5, make_vae

from models.case import Case
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "use_resolution_binning": False,
    "clean_caption": False,
    "output_type": "latent",
}


def make_transformer(**overrides: object) -> PixArtTransformer2DModel:
    """For 4-channel latents, text width 64."""
    torch.manual_seed(0)
    settings: dict[str, object] = {
        "num_layers": 1,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "caption_channels": 64,
        "sample_size": 8,
    }
    model = PixArtTransformer2DModel(**settings | overrides)
    return awake(model)


def make_pipeline() -> PixArtAlphaPipeline:
    """PixArt-α."""
    text_encoder, tokenizer = make_t5()
    return PixArtAlphaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        transformer=make_transformer(),
        scheduler=DPMSolverMultistepScheduler(),
    )


CASES = [Case("pixart-alpha", make_pipeline, CALL, {"prompt": "a green tree"}, copies=2)]
