"""AnyFlow."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fera.models.registry import Denoiser, add


def _noisy_frames(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, T, C, H, W), with a timestep a frame, (B, T).

    A given frame, whose timestep is 0 among others that are not, is set to zero.
    """
    timestep = arguments.get("timestep")
    if timestep is not None and timestep.shape == latent.shape[:2]:
        is_noisy = timestep > 0
        # All are 0 where the pipeline only keeps the keys and values of what it has drawn.
        latent = latent * (is_noisy | ~is_noisy.any(dim=1, keepdim=True))[:, :, None, None, None]
    return latent.flatten(1, 2)


add(
    "AnyFlowTransformer3DModel",
    Denoiser("hidden_states", _noisy_frames, beside=("ffn.net.0.proj", "ffn.net.2"), pipelines=("AnyFlowPipeline",)),
)
add(
    "AnyFlowFARTransformer3DModel",
    Denoiser("hidden_states", _noisy_frames, beside=("ffn.net.0.proj", "ffn.net.2"), pipelines=("AnyFlowFARPipeline",)),
)
