"""Experts one at a time: a gate held still, or experts made louder and softer."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.components import Target, denoisers
from fera.traces.gates import choose_gate
from fera.tuner import FeraConfig, FrequencyGate
from fera.tuner.model import adapter_configs


@contextmanager
def fixed_gate(target: Target, gate: str | Sequence[float], *, adapter_name: str = "default") -> Iterator[None]:
    """Hold an adapter's gate still inside the block, whatever its router says.

    Traces show the fixed gate. It acts in all threads that use this denoiser.

    Args:
        target: a diffusers pipeline, a denoiser or a PeftModel.
        gate: "uniform", or E weights that are at least 0 and sum to 1; (0, 1, 0) is the second expert alone.
        adapter_name: the adapter.

    Raises:
        FeraError: there is no such routed adapter, or the gate is none.
    """
    routers = _routers(target, adapter_name)
    hooks = {name: _held(choose_gate(gate, config.num_experts, adapter_name)) for name, (_, config) in routers.items()}
    with _answering(routers, hooks):
        yield


@contextmanager
def weighted_experts(target: Target, factors: Sequence[float], *, adapter_name: str = "default") -> Iterator[None]:
    """Multiply the gate of each expert inside the block: (0, 1, 0) leaves the second one alone, (1, 0, 1) mutes it.

    The weights of the others stay as they are, so a gate no longer sums to 1. Traces show what acts. Entered inside
    `fixed_gate`, it multiplies the gate that is held. It acts in all threads that use this denoiser.

    Args:
        target: a diffusers pipeline, a denoiser or a PeftModel.
        factors: E numbers, finite.
        adapter_name: the adapter.

    Raises:
        FeraError: there is no such routed adapter, or not a factor an expert.
    """
    routers = _routers(target, adapter_name)
    for _, config in routers.values():
        if len(factors) != config.num_experts or not all(map(math.isfinite, factors)):
            given = ", ".join(f"{factor:g}" for factor in factors)
            raise FeraError(f"{adapter_name} has {config.num_experts} experts: give as many numbers, not {given}")
    with _answering(routers, dict.fromkeys(routers, _weighted(factors))):
        yield


_Hook = Callable[[nn.Module, Any, Tensor], Tensor]


def _held(chosen: Tensor) -> _Hook:
    return lambda router, inputs, output: chosen.to(output).expand_as(output)


def _weighted(factors: Sequence[float]) -> _Hook:
    return lambda router, inputs, output: output * output.new_tensor(factors)


@contextmanager
def _answering(routers: Mapping[str, tuple[nn.Module, FeraConfig]], hooks: Mapping[str, _Hook]) -> Iterator[None]:
    """Have hooks answer in the routers' place, whatever the routers take as their input."""
    with ExitStack() as stack:
        for name, (router, _) in routers.items():
            stack.callback(router.register_forward_hook(hooks[name]).remove)
        yield


def _routers(target: Target, adapter: str) -> dict[str, tuple[nn.Module, FeraConfig]]:
    """Routers of an adapter, and its settings, by the denoisers' names."""
    found = {}
    for name, denoiser in denoisers(target).items():
        config = adapter_configs(denoiser).get(adapter)
        if isinstance(config, FeraConfig) and config.has_gate:
            found[name] = (_router(denoiser, adapter), config)
    if not found:
        raise FeraError(f"no FeRA adapter {adapter!r} whose gate could be set; load it with fera.load_adapter")
    return found


def one_hot(expert: int, num_experts: int) -> list[float]:
    """The gate of a single expert.

    Args:
        expert: from 0.
        num_experts: E.
    """
    return [float(e == expert) for e in range(num_experts)]


def _router(denoiser: nn.Module, adapter: str) -> nn.Module:
    (gate,) = [module for module in denoiser.modules() if isinstance(module, FrequencyGate)]
    return gate.router[adapter]
