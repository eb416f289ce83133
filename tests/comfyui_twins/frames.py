"""Noise levels of the frames of a video."""

from torch import Tensor


def of_tokens(level: Tensor, latent: Tensor, patch: int = 1) -> Tensor:
    """Levels of a video's tokens, shape (B, T h w).

    Args:
        level: of each sample, shape (B,), or of each of its frames, shape (B, T).
        latent: shape (B, C, T, H, W).
        patch: side of the square of pixels that a token is.
    """
    frames, height, width = latent.shape[2:]
    each = level if level.ndim == 2 else level[:, None].expand(-1, frames)
    return each.repeat_interleave(height * width // patch**2, dim=1)
