"""Indicator and router as a share of the denoiser's forward, at full sizes.

SD 1.5 and SDXL run whole. Of FLUX.1 one block of each kind runs, and their times are multiplied by how many there are;
what surrounds the blocks is left out, which makes the share larger.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from torch import Tensor

from benchmarks.contestants import EXPERTS, RANK
from benchmarks.full_models import (
    FLUX,
    FLUX_AXES,
    FLUX_DOUBLE,
    FLUX_LATENT,
    FLUX_SINGLE,
    SD15,
    SDXL,
    random_buffer,
    with_weights,
)
from benchmarks.meters import REPORTED_SECONDS, Clock
from benchmarks.race import Comparison, Race
from fera import FeraConfig, SoftFrequencyRouter
from fera.tuner.gate import input_of

# A tenth in each direction, to see that all of it runs.
_SMALL = {"block_out_channels": (32, 64, 128), "sample_size": 16, "attention_head_dim": 4}


def races(small: bool) -> Iterator[Race]:
    """SD 1.5, SDXL, FLUX.1, each at its own size: 512 x 512, 1024 x 1024, 1024 x 1024 pixels."""
    buffer = random_buffer(small)
    unets = {"SD 1.5": SD15 | _SMALL | {"block_out_channels": (32, 64, 128, 128)}, "SDXL": SDXL | _SMALL}
    for name, config in unets.items() if small else {"SD 1.5": SD15, "SDXL": SDXL}.items():
        side: Any = config["sample_size"]
        yield _race(name, (1, 4, side, side), _unet_forward(config, buffer))
    flux = {"dim": 128, "num_attention_heads": 1, "attention_head_dim": 128} if small else FLUX
    yield _race("FLUX.1, from two blocks", FLUX_LATENT, _flux_forward(flux, 1 / 16 if small else 1, buffer))


def _race(name: str, shape: tuple[int, ...], forward: Callable[[Clock], float]) -> Race:
    return Race(
        f"share of a forward, {name}, latent {shape}",
        {"indicator and router": _routing(shape), "denoiser": forward},
        [Comparison("indicator and router", "denoiser", 0.005)],
        rounds=3,
        warm_up=0,
        meter=REPORTED_SECONDS,
    )


def _routing(shape: tuple[int, ...]) -> Callable[[Clock], float]:
    """What routes a forward, as a fresh adapter of `fera train` does it; seconds of one."""
    config = FeraConfig(r=RANK, num_experts=EXPERTS, router_input="shares+timestep")
    inputs = input_of(config)
    router = SoftFrequencyRouter(inputs.size, EXPERTS, config.router_features, config.temperature)
    latent, level, calls = torch.randn(shape), torch.rand(shape[0]), 50

    @torch.no_grad()
    def seconds(clock: Clock) -> float:
        router(inputs(latent, level))  # after this the transfer functions are there, as in all steps but the first
        start = clock()
        for _ in range(calls):
            router(inputs(latent, level))
        return (clock() - start) / calls

    return seconds


def _unet_forward(config: dict[str, Any], buffer: Tensor) -> Callable[[Clock], float]:
    """Seconds of a UNet's forward of one sample."""
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    unet = with_weights(unet, buffer).eval()
    side = config["sample_size"]
    arguments: dict[str, Any] = {"encoder_hidden_states": torch.randn(1, 77, config["cross_attention_dim"])}
    if "addition_embed_type" in config:
        pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        arguments["added_cond_kwargs"] = {"text_embeds": torch.randn(1, pooled), "time_ids": torch.zeros(1, 6)}
    latent = torch.randn(1, 4, side, side)
    return lambda clock: _seconds(lambda: unet(latent, torch.tensor(500), **arguments), clock)


def _flux_forward(sizes: dict[str, int], tokens: float, buffer: Tensor) -> Callable[[Clock], float]:
    """Seconds of FLUX.1's blocks, from one of each kind, with that part of 4096 tokens of picture and 512 of text."""
    side, text_length, dim = int(64 * tokens**0.5), int(512 * tokens), sizes["dim"]
    with torch.device("meta"):
        double, single = FluxTransformerBlock(**sizes), FluxSingleTransformerBlock(**sizes)
    double, single = with_weights(double, buffer).eval(), with_weights(single, buffer).eval()
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(side).float(), torch.arange(side).float())
    rotary = FluxPosEmbed(theta=10_000, axes_dim=list(FLUX_AXES))(torch.cat([torch.zeros(text_length, 3), places]))
    states = {
        "hidden_states": torch.randn(1, side * side, dim),
        "encoder_hidden_states": torch.randn(1, text_length, dim),
        "temb": torch.randn(1, dim),
        "image_rotary_emb": rotary,
    }

    def seconds(clock: Clock) -> float:
        return FLUX_DOUBLE * _seconds(lambda: double(**states), clock) + FLUX_SINGLE * _seconds(
            lambda: single(**states), clock
        )

    return seconds


@torch.no_grad()
def _seconds(work: Callable[[], object], clock: Clock) -> float:
    start = clock()
    work()
    return clock() - start
