"""Experts one at a time: a gate held still."""

from collections.abc import Iterator, Sequence
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
    routers = {}
    for name, denoiser in denoisers(target).items():
        config = adapter_configs(denoiser).get(adapter_name)
        if isinstance(config, FeraConfig) and config.has_gate:
            chosen = choose_gate(gate, config.num_experts, adapter_name)
            routers[name] = (_router(denoiser, adapter_name), chosen)
    if not routers:
        raise FeraError(f"no FeRA adapter {adapter_name!r} whose gate could be fixed; load it with fera.load_adapter")

    def hold(chosen: Tensor) -> Any:
        return lambda router, inputs, output: chosen.to(output).expand_as(output)

    with ExitStack() as stack:
        for router, chosen in routers.values():
            # A hook answers in the router's place, whatever the router takes as its input.
            stack.callback(router.register_forward_hook(hold(chosen)).remove)
        yield


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
