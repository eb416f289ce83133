"""The parameters that train: in groups with rates of their own, and how to leave them out of a forward."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from fera.config import OptimizationConfig
from fera.config.optimization import router_lr_ratio
from fera.errors import FeraError
from fera.tuner.model import gate_of


def parameter_groups(
    settings: OptimizationConfig, denoiser: nn.Module, more: Sequence[dict[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The experts' A, their B, the router, and more, each with its learning rate, as optimizers take groups.

    A soft prompt in the denoiser is among what is more: `fera.training.trained.soft_prompt`.
    B is zero at the start and A is not: at one learning rate for both, B learns too slowly in wide layers (LoRA+).
    Groups can be empty: a baseline has no router, and not every scheme a B.

    Args:
        settings: the settings of the run.
        denoiser: it holds what trains.
        more: groups of other parameters, as optimizers take them.

    Raises:
        FeraError: `loraplus_lr_ratio` is set, but the experts have no B.

    Source:
        Hayou et al., LoRA+, arXiv 2402.12354.
    """
    gate = gate_of(denoiser)
    router = {id(parameter) for parameter in gate.router.parameters()} if gate is not None else set()
    apart = {id(parameter) for parameter in gate.soft_prompt.parameters()} if gate is not None else set()
    trained = [
        (name, parameter)
        for name, parameter in denoiser.named_parameters()
        if parameter.requires_grad and id(parameter) not in apart
    ]
    experts = [(name, parameter) for name, parameter in trained if id(parameter) not in router]
    in_b = [parameter for name, parameter in experts if _is_b(name)]
    if settings.loraplus_lr_ratio != 1 and not in_b:
        raise FeraError(
            f"train.loraplus_lr_ratio is {settings.loraplus_lr_ratio:g}, but the experts of this adapter have no "
            "matrix B; leave it at 1"
        )
    return [
        {"params": [parameter for name, parameter in experts if not _is_b(name)], "lr": settings.learning_rate},
        {"params": in_b, "lr": settings.learning_rate * settings.loraplus_lr_ratio},
        {
            "params": [parameter for _, parameter in trained if id(parameter) in router],
            "lr": settings.learning_rate * router_lr_ratio(settings),
        },
        *more,
    ]


def _is_b(name: str) -> bool:
    """Whether a parameter is a LoRA's B, by PEFT's names."""
    return "lora_B." in name or "lora_embedding_B." in name


def has_adapter(model: nn.Module) -> bool:
    """Whether an adapter acts in a model, that `adapter_off` would turn off."""
    layers = (module for module in model.modules() if isinstance(module, BaseTunerLayer))
    return any(layer.active_adapters and not layer._disable_adapters for layer in layers)


@contextmanager
def adapter_off(denoiser: nn.Module) -> Iterator[None]:
    """Let the denoiser predict as the base does; what is trainable stays so, and what was off stays off."""
    layers = [module for module in denoiser.modules() if isinstance(module, BaseTunerLayer)]
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was_off in zip(layers, before, strict=True):
            layer._disable_adapters = was_off
