"""From the latent of a forward to the gate that its layers read.

A denoiser holds one `FrequencyGate`. A hook before its forward computes, for each active adapter, the indicator of
the latent and the gate, once; the adapted layers read the gate during that forward; a hook after it takes it away,
also when the forward failed.
"""

import threading
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn

from fera.method.fixed_routers import NoRouter
from fera.method.from_settings import new_router, router_input
from fera.method.router_input import RouterInput
from fera.method.routing import Routing
from fera.models.reading import CallReader
from fera.models.rows import Count
from fera.models.soft_prompts import with_soft_prompt
from fera.support.tracing import has_values
from fera.tuner.checkpointing import CarryGates
from fera.tuner.config import FeraConfig
from fera.tuner.fast.forming import Formable, FormedLayer, StepWeights
from fera.tuner.residence import has_groups, keep_in_place
from fera.tuner.schedulers import SchedulerOf

Gates = dict[str, Tensor]
Rows = dict[str, Count]

# Gates that differ by less are one gate: they come from copies of one latent.
_ROUNDING = 1e-6
# Of a soft prompt's first values, where training does not start it from the states of captions.
_SOFT_PROMPT_STD = 0.02


@dataclass(frozen=True)
class _Trace:
    """Where routings go.

    Args:
        routings: the list that grows.
        component: name of the denoiser.
        to_cpu: move their tensors to the CPU, which waits for the device.
    """

    routings: list[Routing]
    component: str
    to_cpu: bool


class _PerThread(threading.local):
    """The forward that this thread is in: threads that share a denoiser do not see each other's gates."""

    def __init__(self) -> None:
        self.denoiser: nn.Module | None = None
        self.gates: Gates | None = None
        self.rows: Rows = {}
        self.shared: dict[Hashable, Any] = {}

    def __reduce__(self) -> tuple[type["_PerThread"], tuple[()]]:
        return (_PerThread, ())  # a copied or unpickled model starts outside any forward


class FrequencyGate(nn.Module, BaseTunerLayer):
    """Routers of a denoiser's FeRA adapters, and the gates of its current forward.

    It sits in the denoiser as the submodule `fera`, so that its routers train, save and move with it, and it is a
    PEFT layer without a base layer, so that activating, disabling and deleting adapters reaches it like any other.

    Args:
        denoiser: the model whose calls it routes.

    Raises:
        FeraError: fera does not know the denoiser's class.
    """

    adapter_layer_names = ("router", "soft_prompt")
    other_param_names = ("inputs",)
    # PEFT looks these up in the base layer, and there is none.
    weight = None  # type: ignore[assignment]
    bias = None  # type: ignore[assignment]

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.router = nn.ModuleDict()
        self.soft_prompt = nn.ParameterDict()
        self.inputs: dict[str, RouterInput] = {}
        self.merged_adapters = []
        self._disable_adapters = False
        self._active_adapter: list[str] = []
        self._reader = CallReader(denoiser)
        # Of the pipeline that it is in, where one is known.
        self.scheduler: SchedulerOf | None = None
        self._traces: list[_Trace] = []
        self._thread = _PerThread()
        self.step_weights = StepWeights()
        # In a tuple: not submodules. Found once, since to walk a denoiser takes a percent of its training step.
        self._blocks = tuple(module for module in denoiser.modules() if hasattr(module, "gradient_checkpointing"))
        # What compiled layers read: the compiler can follow a plain attribute, not thread-local storage.
        self._compiled_gates: Gates | None = None
        self._compiled_rows: Rows = {}
        # Of adapted layers whose rows are not samples.
        self._parts: tuple[str, ...] = ()
        # `always_call`: an exception in the forward must not leave gates behind.
        self._hooks = (
            denoiser.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            denoiser.register_forward_hook(self._after_forward, always_call=True),
        )

    def add_adapter(self, adapter_name: str, config: FeraConfig, device: torch.device) -> None:
        """Give an adapter its bands and a fresh router, inactive and frozen until it is activated."""
        if not config.has_gate:
            self.router[adapter_name] = NoRouter()
            return
        settings = vars(config) | {"kappa": config.chosen_kappa}
        self.inputs[adapter_name] = router_input(settings)
        router = new_router(settings).requires_grad_(False)
        # On meta under `low_cpu_mem_usage`: PEFT gives it weights and a device when it loads them.
        is_meta = any(parameter.is_meta for parameter in router.parameters())
        self.router[adapter_name] = router if is_meta else router.to(device)

    def add_soft_prompt(self, adapter_name: str, count: int, width: int, device: torch.device) -> None:
        """Give an adapter vectors that its calls have before the states of the text, small and random, frozen.

        Args:
            adapter_name: the adapter.
            count: V.
            width: D, of a state of the text.
            device: where to keep them.
        """
        vectors = nn.Parameter(_SOFT_PROMPT_STD * torch.randn(count, width), requires_grad=False)
        self.soft_prompt[adapter_name] = vectors if vectors.is_meta else nn.Parameter(vectors.to(device), False)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters, as PEFT does when adapters come or go too."""
        self._forget_layers()
        super().set_adapter(adapter_names, inference_mode)

    def part_of(self, layer: str) -> str | None:
        """What a layer to be routed asks for its rows by, from its name in the denoiser; None: they are samples."""
        part = self._reader.part_of(layer)
        if part is not None and part not in self._parts:
            self._parts = (*self._parts, part)
        return part

    def remove_hooks(self) -> None:
        """Stop routing the denoiser, and let go of its layers."""
        for hook in self._hooks:
            hook.remove()
        self._forget_layers()

    @property
    def routes(self) -> bool:
        """Whether any adapter in it has a gate: the experts of some act all alike."""
        return bool(self.inputs)

    @property
    def gates(self) -> Gates | None:
        """Gate of each active adapter in the current forward, shape (B, E), float32; None outside one."""
        return self._compiled_gates if torch.compiler.is_compiling() else self._thread.gates

    @property
    def shared(self) -> dict[Hashable, Any]:
        """What layers computed from the current gates and may use again; forgotten together with the gates."""
        return {} if torch.compiler.is_compiling() else self._thread.shared

    def delete_adapter(self, adapter_name: str) -> None:
        """Take the router of an adapter away."""
        self._forget_layers()
        super().delete_adapter(adapter_name)

    def _forget_layers(self) -> None:
        self.step_weights.forget()

    def is_one(self, adapter: str) -> bool:
        """Whether all samples of the current forward have one gate. False where checking is not allowed or too costly.

        It waits for the device, once a forward of several samples.
        """
        shared, gates = self.shared, self.gates
        if gates is None or torch.compiler.is_compiling():
            return False
        key = ("one gate", adapter)
        if key not in shared:
            gate = gates[adapter]
            # Compared as numbers: three operators fewer.
            shared[key] = len(gate) == 1 or (_may_read(gate) and len(set(map(tuple, gate.tolist()))) == 1)
        return shared[key]

    def repeats(self, adapter: str, period: int) -> bool:
        """Whether the gates of the current forward's samples are those of the first few, again and again.

        As `is_one`, it is False where checking is not allowed; gates that differ by rounding alone count as equal.

        Args:
            adapter: its name.
            period: how many come before the first is there again; a divisor of the batch.
        """
        shared, gates = self.shared, self.gates
        if gates is None or torch.compiler.is_compiling():
            return False
        key = ("repeats", adapter, period)
        if key not in shared:
            gate = gates[adapter].detach()
            is_alike = len(gate) == period or (_may_read(gate) and _repeats(gate, period))
            shared[key] = is_alike
        return bool(shared[key])

    @property
    def knows_rows(self) -> bool:
        """Whether the denoiser's class names all layers whose rows are not samples."""
        return self._reader.knows_rows

    @property
    def rows(self) -> Rows:
        """How many rows each sample of the current forward has in the inputs of layers, by their `part_of`."""
        return self._compiled_rows if torch.compiler.is_compiling() else self._thread.rows

    def formed(self, layer: Formable, adapter: str, rows: Tensor) -> FormedLayer | None:
        """What a layer multiplies with in the current forward, formed with others: `StepWeights.take`."""
        denoiser = self._thread.denoiser
        return None if denoiser is None else self.step_weights.take(layer, adapter, rows, denoiser, self.shared)

    @contextmanager
    def using(self, gates: Gates | None, rows: Rows | None = None) -> Iterator[None]:
        """Put given gates in force, for layers that are run again after their forward has ended."""
        before, shared_before = (self._thread.gates, self._thread.denoiser, self._thread.rows), self._thread.shared
        self._set_gates(gates, rows=rows)
        try:
            yield
        finally:
            self._set_gates(*before)
            self._thread.shared = shared_before

    @contextmanager
    def recording(self) -> Iterator[list[Routing]]:
        """Record the routings of the forwards inside the block, on the denoiser's device: no step waits for them."""
        routings: list[Routing] = []
        self.start_trace(routings, "denoiser", to_cpu=False)
        try:
            yield routings
        finally:
            self.stop_trace(routings)

    def start_trace(self, routings: list[Routing], component: str, *, to_cpu: bool = True) -> None:
        """Append one entry a forward and adapter to a list from now on, under a name for the denoiser."""
        self._traces = [*self._traces, _Trace(routings, component, to_cpu)]

    def stop_trace(self, routings: list[Routing]) -> None:
        """Leave a list alone again."""
        self._traces = [trace for trace in self._traces if trace.routings is not routings]

    def set_scale(self, adapter: str, scale: float) -> None:
        """An adapter's weight scales its experts, not its gate."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Nothing of its own is merged; PEFT asks all layers when it merges adapters without a gate."""

    def unmerge(self) -> None:
        """Nothing is merged ever; diffusers asks all layers when it unfuses some."""

    def scale_layer(self, scale: float) -> None:
        """As `set_scale`."""

    def unscale_layer(self, scale: float | None = None) -> None:
        """As `set_scale`."""

    def _set_gates(self, gates: Gates | None, denoiser: nn.Module | None = None, rows: Rows | None = None) -> None:
        self._compiled_gates = gates
        self._compiled_rows = rows or {}
        if not torch.compiler.is_compiling():
            self._thread.rows = rows or {}
            self._thread.denoiser = denoiser
            self._thread.gates = gates
            self._thread.shared = {}

    def _before_forward(
        self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Put soft prompts into the call, and find its gates."""
        active = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.soft_prompt]
        if not active:
            self._find_gates(denoiser, args, kwargs)
            return None
        vectors = torch.cat([self.soft_prompt[name] for name in active])
        args, kwargs = with_soft_prompt(denoiser, args, kwargs, vectors)
        self._find_gates(denoiser, args, kwargs)
        return args, kwargs

    def _find_gates(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        names = [] if self.disable_adapters else [name for name in self.active_adapters if name in self.inputs]
        if not names:
            self._set_gates(None)
            return
        if has_groups(denoiser, self.router):
            keep_in_place(denoiser, self.router)
        latent = self._reader.latent(denoiser, args, kwargs)
        gates = {}
        for name in names:
            inputs = self.inputs[name]
            level = self._noise_level(name, args, kwargs, latent) if inputs.reads_timestep else None
            entries = inputs(latent, level)
            gates[name] = self.router[name](entries)
            if self._traces:
                self._record(name, self._reader.timestep(args, kwargs), inputs.indicator(entries, latent), gates[name])
        self._set_gates(gates, denoiser, self._reader.count_rows(denoiser, args, kwargs, self._parts))
        if torch.is_grad_enabled():
            self._carry_through_checkpoints()

    def _noise_level(self, adapter: str, args: tuple[Any, ...], kwargs: dict[str, Any], latent: Tensor) -> Tensor:
        if self.scheduler is not None and not self._reader.takes_log_sigma and not torch.compiler.is_compiling():
            self.scheduler.check(adapter)
        return self._reader.noise_level(args, kwargs, latent)

    def _after_forward(self, denoiser: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self._set_gates(None)

    def _record(self, adapter: str, timestep: Any, indicator: Tensor, gate: Tensor) -> None:
        if timestep is not None:
            timestep = torch.as_tensor(timestep).detach()
            if timestep.ndim > 1:  # one a token, 0 on those that are given
                timestep = timestep.flatten(1).amax(dim=1)
        routing = Routing(adapter, timestep, indicator.detach().float(), gate.detach().float())
        for trace in self._traces:
            own = routing.to_cpu() if trace.to_cpu else routing
            trace.routings.append(replace(own, component=trace.component))

    def _carry_through_checkpoints(self) -> None:
        # Blocks run again in the backward pass, when other forwards may have come and gone: their gates travel with
        # the call. The checkpointing function is what diffusers lets its users replace.
        for block in self._blocks:
            function = getattr(block, "_gradient_checkpointing_func", None)
            if block.gradient_checkpointing and function is not None and not isinstance(function, CarryGates):
                setattr(block, "_gradient_checkpointing_func", CarryGates(function, self))  # noqa: B010


def _may_read(gate: Tensor) -> bool:
    """Whether the values of a gate may be read: on devices that are known to be waited for, and where it has values."""
    return (gate.is_cpu or gate.is_cuda) and has_values(gate)


def _repeats(gate: Tensor, period: int) -> bool:
    copies = gate.unflatten(0, (-1, period))
    return bool((copies - copies[:1]).abs().max() <= _ROUNDING)
