"""Gradient checkpointing of a denoiser: activations are computed again in the backward pass."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.checkpoint import checkpoint

from fera.errors import FeraError
from fera.models.families import Family


def checkpoint_gradients(denoiser: nn.Module, family: Family) -> None:
    """Switch it on.

    Args:
        denoiser: a model of diffusers.
        family: of its pipeline.

    Raises:
        FeraError: diffusers cannot, or does not do it rightly, for this class.
    """
    if family.no_checkpointing:
        raise FeraError(
            f"train.gradient_checkpointing is set, but {family.no_checkpointing}. Leave it out; a smaller batch, "
            "8-bit optimizers and quantization save memory too"
        )
    enable: Any = denoiser.enable_gradient_checkpointing
    enable(_recomputed)


def _recomputed(block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """As diffusers does it, for blocks that are called with keywords too."""
    recompute: Any = checkpoint
    return recompute(block, *args, use_reentrant=False, **kwargs)
