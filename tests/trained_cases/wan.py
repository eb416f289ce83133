"""Wan."""

import torch
from diffusers import AutoencoderKLWan, WanImageToVideoPipeline, WanPipeline
from models import wan
from models.inputs import awake

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


def make_image_to_video(**transformer: object) -> WanImageToVideoPipeline:
    """As Wan 2.1: 4 channels of a mask and 4 of given frames beside the latent's 4, and CLIP sees them."""
    settings = {"in_channels": 12, "out_channels": 4, "image_dim": 4, "added_kv_proj_dim": 24} | transformer
    parts = make_pipeline().components | {"transformer": awake(wan.make_transformer(**settings))}
    return WanImageToVideoPipeline(**parts | wan.make_vision())


def make_between() -> WanImageToVideoPipeline:
    """The one that draws between two pictures, with places for the tokens of both."""
    return make_image_to_video(pos_embed_seq_len=2 * 17)


def make_image_to_video_5b() -> WanImageToVideoPipeline:
    """As Wan 2.2 with 5 billion parameters: the given frame is the latent's first one."""
    return WanImageToVideoPipeline(**make_pipeline().components, expand_timesteps=True)


CASES = [
    Case("wan", make_pipeline, height=32, width=48, frames=9),
    Case("wan-5b", make_5b, height=32, width=48, frames=9, variant=True),
    Case("wan-i2v", make_image_to_video, height=32, width=48, frames=5, given=1),
    Case("wan-i2v-last", make_between, height=32, width=48, frames=5, given=2, variant=True),
    Case("wan-i2v-5b", make_image_to_video_5b, height=32, width=48, frames=9, given=1),
]
