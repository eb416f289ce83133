"""LTX-Video."""

import torch
from diffusers import LTXImageToVideoPipeline, LTXPipeline
from models import ltx
from models.inputs import certain

from trained_cases.case import Case


def make_pipeline() -> LTXPipeline:
    """Each channel of its latents has statistics of its own."""
    parts = ltx.components()
    parts["vae"].latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    parts["vae"].latents_std.copy_(torch.linspace(0.5, 2, 8))
    return LTXPipeline(**parts)


def make_image_to_video() -> LTXImageToVideoPipeline:
    """Its autoencoder is all but certain, as the released one: the pipeline draws the given frame's latent."""
    parts = make_pipeline().components
    certain(parts["vae"])
    return LTXImageToVideoPipeline(**parts)


CASES = [
    Case("ltx", make_pipeline, height=32, width=64, frames=9),
    Case("ltx-i2v", make_image_to_video, height=32, width=64, frames=9, given=1),
]
