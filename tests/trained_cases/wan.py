"""Wan."""

import torch
from diffusers import AutoencoderKLWan, WanPipeline
from models import wan

from trained_cases.case import Case


def make_pipeline(**settings: object) -> WanPipeline:
    """For 4-channel latents at an eighth of the pictures' size, each channel with statistics of its own."""
    torch.manual_seed(1)
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        latents_mean=torch.linspace(-0.5, 0.5, 4).tolist(),
        latents_std=torch.linspace(0.5, 2, 4).tolist(),
    )
    transformer = wan.make_transformer(in_channels=4, out_channels=4)
    return WanPipeline(**wan.components() | {"vae": vae.eval()}, transformer=transformer, **settings)


def make_5b() -> WanPipeline:
    """As Wan 2.2 with 5 billion parameters: a timestep a token."""
    return make_pipeline(expand_timesteps=True)


def make_14b() -> WanPipeline:
    """As Wan 2.2 with 14 billion parameters: a second transformer for the less noisy steps."""
    second = wan.make_transformer(seed=7, in_channels=4, out_channels=4)
    return make_pipeline(transformer_2=second, boundary_ratio=0.875)


CASES = [
    Case("wan", make_pipeline, height=32, width=48, frames=9),
    Case("wan-5b", make_5b, height=32, width=48, frames=9),
]
