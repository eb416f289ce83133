"""Latents to measure bands of."""

import math

import torch


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def mode(u, v, height, width):
    """A basis function of the DCT-II with u half waves down and v across: an eigenfunction of every symmetric blur."""
    down = torch.cos(math.pi * u * (torch.arange(height, dtype=torch.float64) + 0.5) / height)
    across = torch.cos(math.pi * v * (torch.arange(width, dtype=torch.float64) + 0.5) / width)
    return (down[:, None] * across)[None, None]
