"""Bases, what is put into them, and a training step: shared by the benchmarks of whole denoisers.

Bases are laid out channels last, as `fera.bases.load_base` lays out those that fera's commands run on: for all
contestants alike.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn

from benchmarks.released import StackedExperts, convolution_indicator
from fera import SoftFrequencyRouter
from fera.bases import lay_out
from fera.demo import base_path
from fera.training.adapters import adapter_of
from fera.training.config import AdapterConfig, OptimizationConfig
from fera.training.optimizers import build_optimizer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
EXPERTS, RANK = 3, 4
WIDE = EXPERTS * RANK  # rank of the plain LoRA of the same size
LORA = f"PEFT LoRA r={WIDE}"


@dataclass(frozen=True)
class Batch:
    """What a UNet is called with and should answer.

    Args:
        latent: shape (B, C, H, W).
        timestep: shape (B,), 0 to 1000.
        conditions: the call's other arguments.
        target: shape (B, C, H, W).
    """

    latent: Tensor
    timestep: Tensor
    conditions: dict[str, Any] = field(default_factory=dict)
    target: Tensor = field(default_factory=lambda: torch.zeros(()))


def emoji_unet() -> UNet2DConditionModel:
    """The bundled base's UNet: 11 million parameters, latents (4, 16, 16)."""
    return lay_out(UNet2DConditionModel.from_pretrained(base_path(), subfolder="unet").requires_grad_(False))


def small_sdxl(depth: int = 10) -> UNet2DConditionModel:
    """A UNet of SDXL's shape, a fifth as wide, with random weights: as many layers, each with little to do.

    Args:
        depth: transformer layers of an innermost block; 10 in SDXL.
    """
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(64, 128, 256),
        layers_per_block=2,
        transformer_layers_per_block=(1, min(2, depth), depth),
        attention_head_dim=(1, 2, 4),
        use_linear_projection=True,
        cross_attention_dim=256,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + 160,
    )
    return lay_out(unet.requires_grad_(False))


def batch_for(unet: UNet2DConditionModel, size: int, tokens: int) -> Batch:
    """A batch of random numbers.

    Args:
        unet: what it is for.
        size: samples.
        tokens: of each caption.
    """
    side, width, latent_channels = unet.config.sample_size, unet.config.cross_attention_dim, unet.config.in_channels
    shape = (size, latent_channels, side, side)
    conditions: dict[str, Any] = {"encoder_hidden_states": torch.randn(size, tokens, width)}
    if unet.config.addition_embed_type == "text_time":
        pooled = unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim
        ids = torch.tensor([side, side, 0, 0, side, side]).float().repeat(size, 1)
        conditions["added_cond_kwargs"] = {"text_embeds": torch.randn(size, pooled), "time_ids": ids}
    return Batch(torch.randn(shape), torch.rand(size) * 1000, conditions, torch.randn(shape))


def with_lora(base: nn.Module, rank: int = WIDE) -> nn.Module:
    """A copy of a base with PEFT's LoRA on its attention."""
    unet = _copy(base)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS), unet)
    return unet


def with_fera(base: nn.Module) -> nn.Module:
    """A copy of a base with routed experts on its attention, as `fera train` makes them."""
    unet = _copy(base)
    adapter_of(AdapterConfig(r=RANK, num_experts=EXPERTS, target_modules=TARGETS)).add(unet)
    return unet


def with_released(base: nn.Module) -> nn.Module:
    """A copy of a base with experts on its attention in the form that the method was released in."""
    unet = _copy(base)
    stacked = []
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in TARGETS)):
            parent, _, child = name.rpartition(".")
            stacked.append(StackedExperts(module, EXPERTS, RANK, alpha=WIDE))
            setattr(unet.get_submodule(parent), child, stacked[-1])
    unet.released_router = SoftFrequencyRouter(3, EXPERTS)

    def route(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        gate = unet.released_router(convolution_indicator(arguments[0], 3))
        for layer in stacked:
            layer.gate = gate

    unet.register_forward_pre_hook(route)
    return unet


def _copy(base: nn.Module) -> nn.Module:
    """A copy that shares the base's frozen weights: those of a large one fit into memory once."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def training_step(unet: nn.Module, batch: Batch) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW of what is trainable, with the settings that `fera train` begins with."""
    unet.train()
    settings = OptimizationConfig()
    optimizer = build_optimizer(settings, unet)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> None:
        prediction = unet(batch.latent, batch.timestep, **batch.conditions).sample
        (prediction - batch.target).square().mean().backward()
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def generation_step(unet: nn.Module, latent: Tensor, timestep: Tensor, text: Tensor) -> Callable[[], Tensor]:
    """The denoiser's call as a pipeline makes it, adapters active and unmerged.

    Args:
        unet: the denoiser.
        latent: shape (B, C, H, W).
        timestep: a scalar.
        text: shape (B, tokens, width).
    """
    unet.eval()

    @torch.no_grad()
    def step() -> Tensor:
        return unet(latent, timestep, encoder_hidden_states=text, return_dict=False)[0]

    return step
