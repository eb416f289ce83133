"""Indicator and router as a share of the denoiser's forward, at full sizes.

SD 1.5 and SDXL run whole. Of FLUX.1 one block of each kind runs, and their times are multiplied by how many there are;
what surrounds the blocks is left out, which makes the share larger.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor, nn

from benchmarks.contestants import EXPERTS, RANK, batch_for
from benchmarks.full_models import (
    FLUX,
    FLUX_AXES,
    FLUX_DOUBLE,
    FLUX_LATENT,
    FLUX_SINGLE,
    made,
    random_buffer,
    sdxl_of,
)
from benchmarks.meters import REPORTED_SECONDS, Clock, wait
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from benchmarks.small_sd15 import FULL, TINY, unet_of
from fera import FeraConfig, SoftFrequencyRouter
from fera.method.from_settings import router_input


def races(setting: Setting) -> Iterator[Race]:
    """SD 1.5, SDXL, FLUX.1, each at its own size: 512 x 512, 1024 x 1024, 1024 x 1024 pixels."""
    small, buffer = setting.small, random_buffer(setting)
    for name, build in [("SD 1.5", lambda: unet_of(TINY if small else FULL)), ("SDXL", lambda: sdxl_of(small))]:
        unet = made(build, buffer)
        yield _race(setting, name, (1, 4, *[unet.config.sample_size] * 2), _unet_forward(unet))
    flux = {"dim": 128, "num_attention_heads": 1, "attention_head_dim": 128} if small else FLUX
    yield _race(setting, "FLUX.1, from two blocks", FLUX_LATENT, _flux_forward(flux, 1 / 16 if small else 1, buffer))


def _race(setting: Setting, name: str, shape: tuple[int, ...], forward: Callable[[Clock], float]) -> Race:
    return Race(
        f"share of a forward, {name}, latent {shape}",
        {"indicator and router": _routing(setting.device, shape), "denoiser": forward},
        [Comparison("indicator and router", "denoiser", 0.005)],
        rounds=3,
        warm_up=0,
        meter=REPORTED_SECONDS,
    )


def _routing(device: torch.device, shape: tuple[int, ...]) -> Callable[[Clock], float]:
    """What routes a forward, as a fresh adapter of `fera train` does it; seconds of one."""
    config = FeraConfig(r=RANK, num_experts=EXPERTS, router_input="shares+timestep")
    inputs = router_input(vars(config) | {"kappa": config.chosen_kappa})
    router = SoftFrequencyRouter(inputs.size, EXPERTS, config.router_features, config.temperature).to(device)
    latent, level, calls = torch.randn(shape, device=device), torch.rand(shape[0], device=device), 50

    @torch.no_grad()
    def seconds(clock: Clock) -> float:
        router(inputs(latent, level))  # after this the transfer functions are there, as in all steps but the first
        wait()
        start = clock()
        for _ in range(calls):
            router(inputs(latent, level))
        wait()
        return (clock() - start) / calls

    return seconds


def _unet_forward(unet: nn.Module) -> Callable[[Clock], float]:
    """Seconds of a UNet's forward of one sample."""
    inputs = batch_for(unet, 1, 77).inputs
    return lambda clock: _seconds(lambda: unet(**inputs), clock)


def _flux_forward(sizes: dict[str, int], tokens: float, buffer: Tensor) -> Callable[[Clock], float]:
    """Seconds of FLUX.1's blocks, from one of each kind, with that part of 4096 tokens of picture and 512 of text."""
    side, text_length, dim = int(64 * tokens**0.5), int(512 * tokens), sizes["dim"]
    place: dict[str, Any] = {"device": buffer.device, "dtype": buffer.dtype}
    double = made(lambda: FluxTransformerBlock(**sizes), buffer)
    single = made(lambda: FluxSingleTransformerBlock(**sizes), buffer)
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(side).float(), torch.arange(side).float())
    ids = torch.cat([torch.zeros(text_length, 3), places]).to(buffer.device)
    rotary = FluxPosEmbed(theta=10_000, axes_dim=list(FLUX_AXES))(ids)
    states = {
        "hidden_states": torch.randn(1, side * side, dim, **place),
        "encoder_hidden_states": torch.randn(1, text_length, dim, **place),
        "temb": torch.randn(1, dim, **place),
        "image_rotary_emb": rotary,
    }

    def seconds(clock: Clock) -> float:
        return FLUX_DOUBLE * _seconds(lambda: double(**states), clock) + FLUX_SINGLE * _seconds(
            lambda: single(**states), clock
        )

    return seconds


@torch.no_grad()
def _seconds(work: Callable[[], object], clock: Clock) -> float:
    wait()
    start = clock()
    work()
    wait()
    return clock() - start
