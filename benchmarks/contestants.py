"""Bases, what is put into them, and a training step: shared by the benchmarks of whole denoisers.

Bases are laid out channels last, as `fera.pipelines.base.load_base` lays out those that fera's commands run on: for all
contestants alike.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.training_utils import cast_training_params
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from benchmarks.released import StackedExperts, convolution_indicator
from benchmarks.setting import Setting, autocast_of
from fera import SoftFrequencyRouter, route_updates
from fera.config import AdapterConfig, OptimizationConfig
from fera.demo import base_path
from fera.pipelines.base import lay_out
from fera.training.step.compiling import compile_denoiser
from fera.training.step.optimizers import build_optimizer
from fera.training.trained.kinds import adapter_of
from fera.training.trained.soft_prompt import soft_prompt_groups

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
# Convolutions and the projections of the time embedding too: the layers of studies/layers.toml that lie in blocks.
WIDE_TARGETS = [*TARGETS, "proj_in", "proj_out", "conv1", "conv2", "conv_shortcut", "conv", "time_emb_proj"]
EXPERTS, RANK = 3, 4
WIDE = EXPERTS * RANK  # rank of the plain LoRA of the same size
LORA = f"PEFT LoRA r={WIDE}"


@dataclass(frozen=True)
class Batch:
    """What a denoiser is called with and should answer.

    Args:
        inputs: the call's arguments by name.
        target: of the shape that it answers in, float32.
        read: what the denoiser answers to its prediction.
    """

    inputs: dict[str, Any]
    target: Tensor
    read: Callable[[Any], Tensor] = itemgetter(0)

    def guided(self) -> "Batch":
        """Each sample twice, without and with its prompt, at one timestep: what guidance makes of a batch."""

        def twice(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: twice(one) for name, one in value.items()}
            return torch.cat([value] * 2)

        return replace(self, inputs=twice(self.inputs) | {"timestep": self.inputs["timestep"][0]})


def emoji_unet(setting: Setting) -> UNet2DConditionModel:
    """The bundled base's UNet: 11 million parameters, latents (4, 16, 16)."""
    return unet_from(setting, base_path())


def unet_from(setting: Setting, base: Path) -> UNet2DConditionModel:
    """The UNet of a base's folder, frozen."""
    unet = UNet2DConditionModel.from_pretrained(base, subfolder="unet")
    return lay_out(setting.place(unet.requires_grad_(False)))


def small_sdxl(setting: Setting) -> UNet2DConditionModel:
    """A UNet of SDXL's shape, a fifth as wide, with random weights: as many layers, each with little to do."""
    depth = 1 if setting.small else 10  # transformer layers of an innermost block
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
    return lay_out(setting.place(unet.requires_grad_(False)))


def batch_for(unet: Any, size: int, tokens: int) -> Batch:
    """A batch of random numbers.

    Args:
        unet: what it is for; on its device and in its precision.
        size: samples.
        tokens: of each caption.
    """
    config, place = unet.config, {"device": unet.device, "dtype": unet.dtype}
    side, width = config.sample_size, config.cross_attention_dim
    shape = (size, config.in_channels, side, side)
    inputs: dict[str, Any] = {
        "sample": torch.randn(shape, **place),
        "timestep": torch.rand(size, device=unet.device) * 1000,
        "encoder_hidden_states": torch.randn(size, tokens, width, **place),
    }
    if config.addition_embed_type == "text_time":
        pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
        ids = torch.tensor([side, side, 0, 0, side, side], **place).repeat(size, 1)
        inputs["added_cond_kwargs"] = {"text_embeds": torch.randn(size, pooled, **place), "time_ids": ids}
    return Batch(inputs, torch.randn(shape, device=unet.device))


def with_lora(base: nn.Module, rank: int = WIDE, targets: Sequence[str] = TARGETS) -> nn.Module:
    """A copy of a base with PEFT's LoRA on its attention, or on other layers."""
    denoiser = copied(base)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=list(targets)), denoiser)
    return denoiser


def with_fera(base: nn.Module, targets: Sequence[str] = TARGETS, rank: int = RANK) -> nn.Module:
    """A copy of a base with routed experts on its attention, or on other layers, as `fera train` makes them."""
    denoiser = copied(base)
    adapter_of(AdapterConfig(r=rank, num_experts=EXPERTS, target_modules=list(targets))).add(denoiser)
    return denoiser


def with_merged_alone(base: nn.Module) -> nn.Module:
    """A copy that finds its gate as `with_fera` does, and whose adapted layers merge that of the first sample, no more.

    They do not see whether anything about them has changed, and several gates would take more: what merging in each
    layer cannot take less than.
    """
    denoiser = with_fera(base)
    layers = [module for module in denoiser.modules() if isinstance(module, LoraLayer)]
    gate, scale, dtype, now = denoiser.fera, layers[0].scaling["default"], base.dtype, {}

    def note(*_: Any) -> None:  # after the hook that finds the gate
        now["first"] = gate.gates["default"][:1].to(dtype).repeat_interleave(RANK, dim=1) * scale

    def forward_of(layer: Any) -> Callable[[Tensor], Tensor]:
        weight, bias = layer.base_layer.weight, layer.base_layer.bias
        a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        return lambda x: nn.functional.linear(x, torch.addmm(weight, b * now["first"], a), bias)

    for layer in layers:
        layer.forward = forward_of(layer)
    denoiser.register_forward_pre_hook(note)
    return denoiser


def with_released(base: nn.Module) -> nn.Module:
    """A copy of a base with experts on its attention in the form that the method was released in."""
    unet = copied(base)
    device = next(base.parameters()).device
    stacked = []
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in TARGETS)):
            parent, _, child = name.rpartition(".")
            stacked.append(StackedExperts(module, EXPERTS, RANK, alpha=WIDE))
            setattr(unet.get_submodule(parent), child, stacked[-1])
    unet.released_router = SoftFrequencyRouter(3, EXPERTS)

    def route(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        with torch.autocast(device.type, enabled=False):
            gate = unet.released_router(convolution_indicator(named["sample"].float(), 3))
        for layer in stacked:
            layer.gate = gate

    unet.register_forward_pre_hook(route, with_kwargs=True)
    return unet.to(device)


def compiled(denoiser: nn.Module, what: str = "denoiser") -> nn.Module:
    """A denoiser that `train.compile` would have compiled so; at its first call."""
    compile_denoiser(denoiser, what)
    return denoiser


def copied(base: nn.Module) -> nn.Module:
    """A copy that shares the base's frozen weights: those of a large one fit into memory once."""
    return copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})


def with_soft_prompt(base: nn.Module, count: int) -> nn.Module:
    """As `with_fera`, with a soft prompt."""
    denoiser = copied(base)
    config = AdapterConfig(r=RANK, num_experts=EXPERTS, target_modules=TARGETS, num_virtual_tokens=count)
    adapter_of(config).add(denoiser)
    return denoiser


def with_gradient_routing(base: nn.Module) -> nn.Module:
    """A copy of a base with experts that all act, for steps that are routed."""
    denoiser = copied(base)
    adapter_of(AdapterConfig(r=RANK, num_experts=EXPERTS, target_modules=TARGETS, router="gradient")).add(denoiser)
    return denoiser


def training_step(denoiser: nn.Module, batch: Batch, *, routes_updates: bool = False) -> Callable[[], None]:
    """Forward, backward, clipping and AdamW of what is trainable, with the settings that `fera train` begins with."""
    denoiser.train()
    cast_training_params(denoiser, torch.float32)
    settings = OptimizationConfig()
    optimizer = build_optimizer(settings, denoiser, soft_prompt_groups(settings, denoiser))
    if routes_updates:
        route_updates(denoiser, optimizer)
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]

    def step() -> None:
        _passes(denoiser, batch)
        torch.nn.utils.clip_grad_norm_(trained, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def passes_alone(base: nn.Module, batch: Batch) -> Callable[[], None]:
    """Forward and backward of a base from where its first adapter would be: a step whose adapters take no time."""
    denoiser = copied(base).train()
    first = next(module for name, module in denoiser.named_modules() if name.endswith(f".{TARGETS[0]}"))
    start = torch.zeros(1, device=batch.target.device, requires_grad=True)
    first.register_forward_pre_hook(lambda module, args: (args[0] + start, *args[1:]))
    return partial(_passes, denoiser, batch)


def _passes(denoiser: nn.Module, batch: Batch) -> None:
    with autocast_of(denoiser):
        prediction = batch.read(denoiser(**batch.inputs, return_dict=False))
    (prediction.float() - batch.target).square().mean().backward()


def generation_step(denoiser: nn.Module, batch: Batch) -> Callable[[], Tensor]:
    """The denoiser's call as a pipeline makes it, adapters active and unmerged, in the base's precision."""
    denoiser.eval()
    dtype = next(denoiser.parameters()).dtype
    for name, parameter in denoiser.named_parameters():
        if ".lora_" in name:  # a router stays in float32
            parameter.data = parameter.data.to(dtype)

    @torch.no_grad()
    def step() -> Tensor:
        return denoiser(**batch.inputs, return_dict=False)[0]

    return step


def with_confined(base: nn.Module, energy: float) -> nn.Module:
    """A copy of a base with experts inside of principal subspaces, of the rank at which they are as large as a LoRA."""

    def confined(rank: int) -> nn.Module:
        denoiser = copied(base)
        expert: dict[str, Any] = {"peft_type": "CERSA", "energy": energy}
        adapter_of(AdapterConfig(r=rank, num_experts=EXPERTS, target_modules=TARGETS, expert=expert)).add(denoiser)
        return denoiser

    free, one = _trained(with_lora(base)), _trained(confined(1))
    return confined(max(1, round(free / one)))


def _trained(denoiser: nn.Module) -> int:
    """Weights of LoRAs that train."""
    named = denoiser.named_parameters()
    return sum(weight.numel() for name, weight in named if weight.requires_grad and ".lora_" in name)
