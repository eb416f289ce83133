"""What a case says."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor


def as_it_is(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents that the scheduler already sees as (B, C, H, W)."""
    return latents


def frames_as_channels(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Latents of videos, (B, C, T, H, W) or (B, T, C, H, W)."""
    return latents.flatten(1, 2)


@dataclass(frozen=True)
class Case:
    """One pipeline with a denoiser, and how a user calls it.

    Args:
        name: of the case, for the test's id.
        pipeline: makes the tiny pipeline, with random weights; its denoiser's output must depend on all inputs.
        call: arguments of the pipeline call, without a generator: small, few steps, `output_type="latent"`.
        other_conditions: arguments that replace some of `call` and change conditions only.
        unpack: (pipeline, latents as its scheduler gets them) to (B, C, H, W) or (B, C, L), with the pipeline's own
            function.
        component: name of the denoiser in the pipeline.
        calls_per_step: forwards of the denoiser a step: 2 where guidance makes two calls.
        copies: how often one call has each latent: 2 where guidance doubles the batch.
        calls_before: forwards of the denoiser before the first step, of what is given.
    """

    name: str
    pipeline: Callable[[], DiffusionPipeline]
    call: dict[str, Any]
    other_conditions: dict[str, Any]
    unpack: Callable[[DiffusionPipeline, Tensor], Tensor] = as_it_is
    component: str = "transformer"
    calls_per_step: int = 1
    copies: int = 1
    calls_before: int = 0
