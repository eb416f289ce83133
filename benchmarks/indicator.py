"""Latent to gate: transfer functions against the released convolutions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.race import Comparison, Race
from benchmarks.released import convolution_indicator
from fera import FrequencyBands, SoftFrequencyRouter

EXPERTS, BANDS = 3, 3


def races(small: bool) -> Iterator[Race]:
    """Sizes of SD 1.5, of the emoji base, of FLUX, and one far from square."""
    shapes = [(8, 4, 64, 64), (8, 4, 16, 16), (2, 16, 128, 128), (4, 4, 64, 256)]
    for shape in [(1, 4, 8, 8)] if small else shapes:
        # The goal is for the size that the method was published at; smaller ones leave little to save.
        yield _race(shape, at_most=1 / 20 if shape == shapes[0] else None)


def _race(shape: tuple[int, int, int, int], at_most: float | None) -> Race:
    latent, bands, router = torch.randn(shape), FrequencyBands(BANDS), SoftFrequencyRouter(BANDS, EXPERTS)

    @torch.no_grad()
    def released() -> Tensor:
        return router(convolution_indicator(latent, BANDS))

    @torch.no_grad()
    def fera() -> Tensor:
        return router(bands.indicator(latent))

    return Race(
        f"indicator and router, latent {shape}",
        {"convolutions": released, "fera": fera},
        [Comparison("fera", "convolutions", at_most)],
        rounds=30,
    )
