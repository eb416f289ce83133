"""Routing the updates of an adapter whose router is "gradient"."""

from typing import Any

import torch
from peft.tuners.lora.layer import LoraLayer
from torch import nn

from fera.errors import FeraError
from fera.method.gradient_routing import StackedExperts, UpdateRouter
from fera.tuner.config import FeraConfig
from fera.tuner.model import adapter_configs


def route_updates(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, top_k: int = 1, adapter_name: str = "default"
) -> UpdateRouter:
    """Let each step of an optimizer update the best experts of each layer alone.

    `fera train` does it. In your own training loop call it once, after the optimizer is built; nothing else changes,
    and an optimizer that is restored from its state dict goes on as it was.

    Args:
        model: the denoiser with an adapter of `FeraConfig(router="gradient")`, or a PeftModel of it.
        optimizer: a `torch.optim.AdamW` over its experts, and over whatever else.
        top_k: experts of a layer that a step updates, from 1 to all of them.
        adapter_name: the adapter.

    Returns:
        What routes; its `updates` say which experts the last step updated.

    Raises:
        FeraError: there is no such adapter, its router is another one, or as `UpdateRouter`.
    """
    config = adapter_configs(model).get(adapter_name)
    if not isinstance(config, FeraConfig) or config.has_gate:
        raise FeraError(f"the model has no adapter {adapter_name!r} with router='gradient', whose updates are routed")
    layers = []
    for module in model.modules():
        if isinstance(module, LoraLayer) and adapter_name in module.lora_A:
            a: Any = module.lora_A[adapter_name].weight
            b: Any = module.lora_B[adapter_name].weight
            # A layer may have ranks of its own, which are alike for all experts.
            ranks = config.ranks or [len(a) // config.num_experts] * config.num_experts
            layers.append(StackedExperts(a, b, tuple(ranks)))
    return UpdateRouter(optimizer, layers, top_k=top_k)
