"""How far a static LoRA is from the routed adapter that it stands for."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.generation import generate
from fera.models.components import denoisers
from fera.pipelines.adapters import set_adapters, trace
from fera.traces.gates import GateTrace, trace_of
from fera.tuner import FrequencyGate
from fera.tuner.model import adapter_configs

# Arguments of a denoiser, positional and by name.
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Gap:
    """Distance between the predictions of a static and of the routed adapter, on the same inputs.

    Args:
        prediction: root mean square of the difference, relative to the routed prediction's.
        change: the same, relative to what the routed adapter changes in the base's prediction: 0 is a perfect
            stand-in, 1 is as far off as the base without any adapter.
        timesteps: the timesteps of the denoiser's calls that were compared, in order.
        change_by_call: `change` of each of these calls.
    """

    prediction: float
    change: float
    timesteps: tuple[float, ...]
    change_by_call: tuple[float, ...]


@dataclass(frozen=True)
class Walk:
    """What a routed denoiser was asked while it drew held-out prompts, and what it answered.

    Args:
        calls: arguments of its calls, positional and by name.
        steps: number of the denoising step that each call belongs to, from 0.
        trace: its gates along the steps.
        routed: its answers.
        base: those of the base without adapters.
    """

    calls: list[tuple[tuple[Any, ...], dict[str, Any]]]
    steps: list[int]
    trace: GateTrace
    routed: list[Tensor]
    base: list[Tensor]


@torch.no_grad()
def record_walk(
    pipe: Any, prompts: Sequence[str], *, adapter_name: str = "default", steps: int = 8, seed: int = 0
) -> Walk:
    """Draw prompts with the routed adapter and keep what its denoiser saw.

    Args:
        pipe: a text-to-image pipeline with the adapter active.
        prompts: what to draw; not the ones it was trained on.
        adapter_name: the adapter.
        steps: denoising steps.
        seed: the seed of the noise of the first image, counting up from there.

    Raises:
        FeraError: there is no such adapter, or the pipeline cannot draw.
    """
    denoiser = holder_of(pipe, adapter_name)
    calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
    hook = denoiser.register_forward_pre_hook(
        lambda module, args, kwargs: calls.append((args, kwargs)), with_kwargs=True
    )
    try:
        with trace(denoiser) as routings:
            generate(pipe, prompts, num_inference_steps=steps, seed=seed, batch_size=len(prompts))
    finally:
        hook.remove()
    recorded = trace_of(routings, adapter_name)
    places = {timestep: step for step, timestep in enumerate(recorded.timesteps)}
    numbers = [
        places[float(number if routing.timestep is None else routing.timestep.flatten()[0])]
        for number, routing in enumerate(routing for routing in routings if routing.adapter == adapter_name)
    ]
    routed = [_predict(denoiser, call) for call in calls]
    set_adapters(denoiser, [])
    try:
        base = [_predict(denoiser, call) for call in calls]
    finally:
        set_adapters(denoiser, [adapter_name])
    return Walk(calls, numbers, recorded, routed, base)


@torch.no_grad()
def measure_gap(pipe: Any, walk: Walk, gate_at: Callable[[int], Tensor], *, adapter_name: str = "default") -> Gap:
    """Compare static gates with the routed adapter on the inputs of a walk.

    A static LoRA is the routed adapter with its gate held still, so this needs no second model.

    Args:
        pipe: the pipeline that the walk was recorded with.
        walk: the calls, and the routed answers.
        gate_at: number of a denoising step, from 0, to the gate that serves it, shape (E,).
        adapter_name: the adapter.
    """
    denoiser = holder_of(pipe, adapter_name)
    return gap_of(walk, lambda call, step: predict_with(denoiser, adapter_name, gate_at(step), call))


def gap_of(walk: Walk, predict: Callable[[Call, int], Tensor]) -> Gap:
    """Compare predictions with the routed ones on the inputs of a walk.

    Args:
        walk: the calls, and the routed answers.
        predict: a call and the number of its denoising step, from 0, to the prediction.
    """
    errors, changes, sizes = [], [], []
    for call, step, routed, base in zip(walk.calls, walk.steps, walk.routed, walk.base, strict=True):
        static = predict(call, step)
        errors.append(_energy(static - routed))
        changes.append(_energy(routed - base))
        sizes.append(_energy(routed))
    return Gap(
        _ratio(sum(errors), sum(sizes)),
        _ratio(sum(errors), sum(changes)),
        tuple(walk.trace.timesteps[step] for step in walk.steps),
        tuple(_ratio(error, change) for error, change in zip(errors, changes, strict=True)),
    )


def predict_with(
    denoiser: nn.Module, adapter: str, gate: Tensor, call: tuple[tuple[Any, ...], dict[str, Any]]
) -> Tensor:
    """What a denoiser answers with the gate of an adapter held still.

    Args:
        denoiser: with the adapter active.
        adapter: its name.
        gate: shape (E,).
        call: arguments of the call, positional and by name.
    """
    with _held(denoiser, adapter, gate):
        return _predict(denoiser, call)


class _Held(nn.Module):
    """A router that always answers the same."""

    def __init__(self, gate: Tensor) -> None:
        super().__init__()
        self._gate = gate

    def forward(self, indicator: Tensor) -> Tensor:
        return self._gate.to(indicator.device).expand(indicator.shape[0], -1)


@contextmanager
def _held(denoiser: nn.Module, adapter: str, gate: Tensor) -> Iterator[None]:
    (routing,) = [module for module in denoiser.modules() if isinstance(module, FrequencyGate)]
    router = routing.router[adapter]
    routing.router[adapter] = _Held(gate)
    try:
        yield
    finally:
        routing.router[adapter] = router


def holder_of(pipe: Any, adapter: str) -> nn.Module:
    """The denoiser of a pipeline that has an adapter.

    Raises:
        FeraError: none has.
    """
    for denoiser in denoisers(pipe).values():
        if adapter in adapter_configs(denoiser):
            return denoiser
    raise FeraError(f"no adapter {adapter!r} in this pipeline; load one with fera.load_adapter")


def _predict(denoiser: nn.Module, call: tuple[tuple[Any, ...], dict[str, Any]]) -> Tensor:
    args, kwargs = call
    output = denoiser(*args, **{**kwargs, "return_dict": False})[0]
    return (torch.cat(list(output)) if isinstance(output, list) else output).float()


def _energy(tensor: Tensor) -> float:
    return float(tensor.double().square().sum())


def _ratio(part: float, whole: float) -> float:
    return math.sqrt(part / whole) if whole > 0 else 0.0
