"""LTX-Video."""

import torch
from diffusers import LTXPipeline
from models import ltx

from trained_cases.case import Case


def make_pipeline() -> LTXPipeline:
    """Each channel of its latents has statistics of its own."""
    parts = ltx.components()
    parts["vae"].latents_mean.copy_(torch.linspace(-0.5, 0.5, 8))
    parts["vae"].latents_std.copy_(torch.linspace(0.5, 2, 8))
    return LTXPipeline(**parts)


CASES = [Case("ltx", make_pipeline, height=32, width=64, frames=9)]
