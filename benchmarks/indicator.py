"""Latent to gate: transfer functions against the released convolutions."""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.race import Comparison, Race
from benchmarks.released import convolution_indicator
from benchmarks.setting import Setting
from fera import FrequencyBands, SoftFrequencyRouter

EXPERTS, BANDS = 3, 3


def races(setting: Setting) -> Iterator[Race]:
    """Sizes of SD 1.5, of the emoji base, of FLUX, and one far from square."""
    shapes = [(8, 4, 64, 64), (8, 4, 16, 16), (2, 16, 128, 128), (4, 4, 64, 256)]
    for shape in [(1, 4, 8, 8)] if setting.small else shapes:
        # The goal is for the size that the method was published at; smaller ones leave little to save.
        yield _race(setting, shape, at_most=1 / 20 if shape == shapes[0] else None)


def _race(setting: Setting, shape: tuple[int, int, int, int], at_most: float | None) -> Race:
    latent, bands = torch.randn(shape, device=setting.device), FrequencyBands(BANDS)
    router = SoftFrequencyRouter(BANDS, EXPERTS).to(setting.device)

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
