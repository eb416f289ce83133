"""Cosmos Predict 2."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from fera.models.registry import FEED_FORWARD, FRACTION, Denoiser, add


def _own_frames(denoiser: nn.Module, latent: Tensor, arguments: Mapping[str, Any]) -> Tensor:
    """(B, C, T, H, W), into which given frames are written; `condition_mask`, (B, 1, T, H, W), is 1 on them."""
    given = arguments.get("condition_mask")
    own = latent[:, : int(denoiser.config.out_channels)]  # type: ignore[union-attr, arg-type]
    return (own if given is None else own * (1 - given)).flatten(1, 2)


add(
    "CosmosTransformer3DModel",
    Denoiser(
        "hidden_states",
        _own_frames,
        beside=FEED_FORWARD,
        timestep_range=FRACTION,
        pipelines=("Cosmos2TextToImagePipeline", "Cosmos2VideoToWorldPipeline"),
    ),
)
