"""Tiny pipelines of each family that training knows, with text encoders, in their real classes."""

import torch
from diffusers import DPMSolverMultistepScheduler, PixArtSigmaPipeline, SanaPipeline
from models import flux, pixart, sana, stable_diffusion
from tiny import make_sd3_pipeline, make_sd_pipeline, make_t5, make_vae
from transformers import Gemma2Config, Gemma2Model


def make_pixart_sigma():
    """PixArt-Σ differs from α in what its transformer is told of sizes."""
    text_encoder, tokenizer = make_t5()
    return PixArtSigmaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        transformer=pixart.make_transformer(),
        scheduler=DPMSolverMultistepScheduler(),
    )


def make_sana():
    """With a Gemma text encoder, and the scheduler of its releases."""
    tokenizer = make_t5()[1]
    torch.manual_seed(3)
    text_encoder = Gemma2Model(
        Gemma2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
        )
    ).eval()
    return SanaPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=sana.make_vae(),
        transformer=sana.make_transformer(),
        scheduler=DPMSolverMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
    )


def make_guided_flux():
    """As FLUX.1 dev, whose transformer is told a guidance."""
    return flux.make_pipeline(guidance_embeds=True)


# Name to pipeline, and what a call of it needs beside a prompt for a picture in one forward a step.
FAMILY_CASES = {
    "sd": (make_sd_pipeline, {"guidance_scale": 1.0}),
    "sdxl": (stable_diffusion.make_xl_pipeline, {"guidance_scale": 1.0}),
    "sd3": (make_sd3_pipeline, {"guidance_scale": 1.0}),
    "flux": (flux.make_pipeline, {}),
    "flux-dev": (make_guided_flux, {"guidance_scale": 1.0}),
    "pixart-alpha": (pixart.make_pipeline, {"guidance_scale": 1.0, "use_resolution_binning": False}),
    "pixart-sigma": (make_pixart_sigma, {"guidance_scale": 1.0, "use_resolution_binning": False}),
    "sana": (
        make_sana,
        {"guidance_scale": 1.0, "use_resolution_binning": False, "height": 32, "width": 64},  # multiples of 32 alone
    ),
}
