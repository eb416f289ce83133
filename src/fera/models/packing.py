"""Latents as tokens of 2 x 2 pixels, and the places of those tokens in the picture."""

import torch
from torch import Tensor

from fera.models.layouts import unpack

__all__ = ["pack", "places", "unpack"]


def pack(latents: Tensor) -> Tensor:
    """Cut latents (B, C, 2 h, 2 w) into tokens (B, h w, 4 C), row by row; `unpack` is the way back."""
    batch, channels, height, width = latents.shape
    blocks = latents.reshape(batch, channels, height // 2, 2, width // 2, 2)
    return blocks.permute(0, 2, 4, 1, 3, 5).reshape(batch, (height // 2) * (width // 2), 4 * channels)


def places(rows: int, columns: int, like: Tensor) -> Tensor:
    """Where each token lies: (0, row, column), shape (rows columns, 3), on the device and in the dtype of `like`."""
    ids = torch.zeros(rows, columns, 3, device=like.device, dtype=like.dtype)
    ids[..., 1] = torch.arange(rows, device=like.device)[:, None]
    ids[..., 2] = torch.arange(columns, device=like.device)
    return ids.flatten(0, 1)
