"""The optimizer of a run: a class by its name, built over the parameters that train; and its schedule."""

import contextlib
import importlib
import inspect
import io
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from fera.config import AdapterConfig, OptimizationConfig
from fera.config.optimization import ADAM_LIKE, ADAM_SETTINGS, CONSTANT_SCHEDULES, OPTIMIZERS, class_path
from fera.errors import FeraError
from fera.method.gradient_routing import UpdateRouter
from fera.training.step.parameters import parameter_groups
from fera.tuner.updates import route_updates

# AdamW in one kernel. On a CPU it took a sixth of the time of the plain one, on adapters as on whole denoisers.
_FUSED_DEVICES = ("cpu", "cuda")


def build_optimizer(
    settings: OptimizationConfig, denoiser: nn.Module, more: Sequence[dict[str, Any]] = ()
) -> torch.optim.Optimizer:
    """The optimizer over the experts' A, their B, the router, and more, each with its own learning rate.

    Args:
        settings: the settings of the run.
        denoiser: it holds what trains.
        more: groups of other parameters, as optimizers take them.

    Raises:
        FeraError: the optimizer cannot be had or refuses its settings, or `loraplus_lr_ratio` is set without a B.
    """
    groups = parameter_groups(settings, denoiser, more)
    arguments = _arguments(settings, optimizer_class(settings.optimizer))
    if settings.optimizer == "adamw" and not arguments.keys() & {"fused", "foreach"}:
        arguments["fused"] = _can_fuse(settings, groups)
    return _construct(settings, groups, arguments)


def route_updates_of(
    adapter: AdapterConfig, denoiser: nn.Module, optimizer: torch.optim.Optimizer
) -> UpdateRouter | None:
    """Let the optimizer's steps be routed, where the adapter's router is "gradient"; None elsewhere."""
    return route_updates(denoiser, optimizer, top_k=adapter.top_k) if adapter.routes_updates else None


def build_lr_scheduler(settings: OptimizationConfig, optimizer: torch.optim.Optimizer) -> LambdaLR:
    """The course of the optimizer's learning rates over a run, as in diffusers."""
    return get_scheduler(
        settings.lr_scheduler,
        optimizer,
        num_warmup_steps=settings.lr_warmup_steps,
        num_training_steps=settings.steps,
        num_cycles=settings.lr_num_cycles,
        power=settings.lr_power,
    )


def check_optimizer(settings: OptimizationConfig) -> None:
    """Build the optimizer over next to nothing: what is wrong should surface before data are encoded.

    Raises:
        FeraError: as `build_optimizer`, or the optimizer replaces a schedule or an average that is set beside it.
    """
    cls = optimizer_class(settings.optimizer)
    groups = [{"params": [nn.Parameter(torch.zeros(2, 2))], "lr": settings.learning_rate} for _ in range(3)]
    optimizer = _construct(settings, groups, _arguments(settings, cls))
    if not is_schedule_free(optimizer):
        return
    if settings.lr_scheduler not in CONSTANT_SCHEDULES:
        raise FeraError(
            f"train.lr_scheduler is {settings.lr_scheduler}, but {cls.__name__} averages the weights instead of "
            'lowering the rate: set train.lr_scheduler = "constant", or "constant_with_warmup"'
        )
    if settings.use_ema:
        raise FeraError(f"{cls.__name__} averages the weights itself: leave train.use_ema out")


def optimizer_class(name: str) -> type[torch.optim.Optimizer]:
    """The class that a name or a dotted path stands for; a path's module is imported, which runs its code.

    Raises:
        FeraError: its package is not installed, or there is no such class.
    """
    path = class_path(name)
    module_name, _, class_name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name, None)
    except ImportError as error:
        install = "pip install 'fera[optimizers]'" if name in OPTIMIZERS else f"install what provides {module_name}"
        raise FeraError(f"train.optimizer = {name!r} cannot be imported ({error}): {install}") from error
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise FeraError(f"train.optimizer = {name!r}: {module_name} has no optimizer {class_name!r}")
    return cls


def is_schedule_free(optimizer: torch.optim.Optimizer) -> bool:
    """Whether it keeps weights to train with apart from weights to use, as the package schedulefree does."""
    return callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))


def _arguments(settings: OptimizationConfig, cls: type) -> dict[str, Any]:
    """Keyword arguments of the optimizer: those of `optimizer_args`, and AdamW's where they apply."""
    given: dict[str, Any] = dict(settings.optimizer_args or {})
    parameters = list(inspect.signature(cls).parameters.values())[1:]  # the first is what to optimize
    is_adam = settings.optimizer in ADAM_LIKE
    elsewhere = {"lr"} | ({"betas", "eps", "weight_decay"} if is_adam else set())
    valid = [parameter.name for parameter in parameters if parameter.kind != parameter.VAR_KEYWORD]
    takes_any = len(valid) < len(parameters)
    for name in given:
        if name in elsewhere:
            keys = ("learning_rate",) if name == "lr" else ADAM_SETTINGS
            raise FeraError(f"train.optimizer_args.{name}: set {', '.join(f'train.{key}' for key in keys)} instead")
        if name not in valid and not takes_any:
            listed = ", ".join(name for name in valid if name not in elsewhere)
            raise FeraError(f"train.optimizer_args.{name} is no argument of {cls.__name__}; it takes {listed}")
    if is_adam:
        given |= {
            "betas": (settings.adam_beta1, settings.adam_beta2),
            "weight_decay": settings.adam_weight_decay,
            "eps": settings.adam_epsilon,
        }
    # TOML has lists alone; optimizers say tuples.
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}


def _construct(
    settings: OptimizationConfig, groups: list[dict[str, Any]], arguments: dict[str, Any]
) -> torch.optim.Optimizer:
    cls: Any = optimizer_class(settings.optimizer)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # Prodigy prints
            return cls(groups, lr=settings.learning_rate, **arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise FeraError(f"train.optimizer = {settings.optimizer!r} refuses its settings: {error}") from error


def _can_fuse(settings: OptimizationConfig, groups: list[dict[str, Any]]) -> bool:
    # A fused step leaves out non-finite gradients of fp16 inside, where accelerate cannot see that it did.
    parameters = [parameter for group in groups for parameter in group["params"]]
    return settings.mixed_precision != "fp16" and all(
        parameter.device.type in _FUSED_DEVICES and parameter.is_floating_point() for parameter in parameters
    )
