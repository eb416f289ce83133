"""The parameters that train: their optimizer, and how to leave them out of a forward."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fera.training.config import OptimizationConfig
from fera.tuner import FrequencyGate


def build_optimizer(settings: OptimizationConfig, denoiser: nn.Module) -> torch.optim.AdamW:
    """AdamW over the experts and the router, each with its own learning rate."""
    gates = [module for module in denoiser.modules() if isinstance(module, FrequencyGate)]
    router = {id(parameter) for gate in gates for parameter in gate.parameters()}
    trained = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    router_rate = settings.router_learning_rate
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in trained if id(parameter) not in router]},
        {
            "params": [parameter for parameter in trained if id(parameter) in router],
            "lr": settings.learning_rate if router_rate is None else router_rate,
        },
    ]
    return torch.optim.AdamW(
        groups,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )


@contextmanager
def adapter_off(denoiser: nn.Module) -> Iterator[None]:
    """Let the denoiser predict as the base does; what is trainable stays so."""
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False
