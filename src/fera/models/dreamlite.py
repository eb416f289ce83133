"""DreamLite: the given picture lies beside the one that is drawn."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fera.models.registry import Denoiser, add


def _left_half(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, C, H, 2 W); the right half is the given picture's, or zeros."""
    return latent[..., : latent.shape[-1] // 2]


add("DreamLiteUNetModel", Denoiser("sample", _left_half, pipelines=("DreamLitePipeline",)))
