"""Indicator and router as a share of the denoiser's forward, at full sizes.

Weights are random, and all windows of one buffer of 1 GB: larger than any cache, so that a layer's weights come from
memory as those of a model of 10 GB do. SD 1.5 and SDXL run whole. Of FLUX.1 one block of each kind runs, and their
times are multiplied by how many there are; what surrounds the blocks is left out, which makes the share larger.
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
from torch import Tensor, nn

from benchmarks.contestants import EXPERTS, RANK
from benchmarks.meters import REPORTED_SECONDS, Clock
from benchmarks.race import Comparison, Race
from fera import FeraConfig, SoftFrequencyRouter
from fera.tuner.gate import input_of

# As published with the models.
SD15 = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "layers_per_block": 2,
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
SDXL = {
    "sample_size": 128,
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "use_linear_projection": True,
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
FLUX = {"dim": 3072, "num_attention_heads": 24, "attention_head_dim": 128}
FLUX_DOUBLE, FLUX_SINGLE, FLUX_AXES = 19, 38, (16, 56, 56)
FLUX_LATENT = (1, 16, 128, 128)  # 64 x 64 tokens of 2 x 2

# A tenth in each direction, to see that all of it runs.
_SMALL = {"block_out_channels": (32, 64, 128), "sample_size": 16, "attention_head_dim": 4}


def races(small: bool) -> Iterator[Race]:
    """SD 1.5, SDXL, FLUX.1, each at its own size: 512 x 512, 1024 x 1024, 1024 x 1024 pixels."""
    buffer = torch.randn(2**20 if small else 2**28).mul_(0.02)
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
    unet = _with_weights(unet, buffer).eval()
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
    double, single = _with_weights(double, buffer).eval(), _with_weights(single, buffer).eval()
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


def _with_weights(model: nn.Module, buffer: Tensor) -> nn.Module:
    """Give a model on the meta device weights: windows of a buffer, one behind the other, over and over."""
    place = 0
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if place + parameter.numel() > len(buffer):
                place = 0
            window = buffer[place : place + parameter.numel()].view(parameter.shape)
            setattr(module, name, nn.Parameter(window, requires_grad=False))
            place += parameter.numel()
    return model
