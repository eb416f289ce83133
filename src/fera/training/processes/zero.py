"""DeepSpeed's ZeRO, stages 1 and 2: processes share the optimizer's state, and under 2 the gradients.

Each process holds all weights, as under DDP, and accelerate is left to take the run for one: driven by accelerate,
DeepSpeed would step inside of the backward pass, before anyone can see that a gradient is not finite, and bf16 would
cast the weights that train. Here its engine stands in the place of DDP's wrapper, and a `ZeroOptimizer` in that of the
optimizer.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fera.errors import FeraError
from fera.training.processes.zero_launch import zero_stage

_STEP = "step"  # the one entry of AdamW's state that is not as its weight is


class ZeroModel(nn.Module):
    """DeepSpeed's engine, where accelerate expects DDP's wrapper.

    Args:
        engine: over the denoiser.
    """

    def __init__(self, engine: Any) -> None:
        super().__init__()
        self._engine = engine

    def forward(self, *arguments: Any, **settings: Any) -> Any:
        """The denoiser's; the backward pass after it gives gradients to the engine."""
        return self._engine(*arguments, **settings)

    @contextmanager
    def no_sync(self) -> Iterator[None]:
        """Around a forward and backward pass that another one follows before the step."""
        self._engine.set_gradient_accumulation_boundary(False)
        try:
            yield
        finally:
            self._engine.set_gradient_accumulation_boundary(True)


class ZeroOptimizer:
    """An optimizer whose state is shared between processes; from outside it is like the one that it replaces.

    DeepSpeed lays the weights of a group end to end, fills up with zeros, and cuts that into as many equal parts as
    there are processes. Each process steps a copy of its own part, by an optimizer that knows nothing else; then all
    put the weights together. `state_dict` puts the state together too, and `load_state_dict` cuts it.

    Args:
        engine: the engine of DeepSpeed, stepping by `parts`.
        parts: over this process's part of each group that is not empty.
        optimizer: over the weights themselves. It holds the settings, which schedules change, and never a state.
        accelerator: the accelerator of the run.

    Raises:
        FeraError: DeepSpeed cuts the weights in another way.
    """

    def __init__(
        self, engine: Any, parts: torch.optim.Optimizer, optimizer: torch.optim.Optimizer, accelerator: Accelerator
    ) -> None:
        self._engine = engine
        self._parts = parts
        self._optimizer = optimizer
        self._accelerator = accelerator
        self._holds_gradients = False
        for part, weights in self._groups:
            if not torch.equal(part, self._own(weights, part)):
                raise FeraError("this DeepSpeed shares weights in an unknown way: pip install 'fera[deepspeed]'")

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Settings by group, and the weights themselves."""
        return self._optimizer.param_groups

    @property
    def _groups(self) -> list[tuple[Tensor, list[Tensor]]]:
        """This process's part of each group, and all weights of it."""
        parts = [group["params"][0] for group in self._parts.param_groups]
        return list(zip(parts, (group["params"] for group in self.param_groups if group["params"]), strict=True))

    def gradient_norm(self) -> Tensor:
        """Norm of all gradients, of all processes, after the last backward pass of a step; `step` clips to it."""
        self._holds_gradients = True
        return self._engine.optimizer.scaled_global_norm()

    def step(self) -> None:
        """Use the gradients, and let go of them."""
        used = [group for group in self.param_groups if group["params"]]
        for own, group in zip(self._parts.param_groups, used, strict=True):
            own.update({name: value for name, value in group.items() if name != "params"})
        self._engine.step()
        self._optimizer.step()  # finds no gradients, and tells the schedule that there was a step
        self._holds_gradients = False

    def zero_grad(self) -> None:
        """Let go of gradients that were not used."""
        if self._holds_gradients:
            from deepspeed.utils import safe_set_full_grad

            # They are shared already, where nobody else can reach them; of what is not finite it lets go by itself.
            weight = self._groups[0][1][0]
            safe_set_full_grad(weight, torch.full_like(weight, float("nan")))
            self._engine.step()
            self._holds_gradients = False

    def state_dict(self) -> dict[str, Any]:
        """In the form of one process, with the whole state. All processes call it together."""
        entries: list[dict[str, Any]] = []
        for part, weights in self._groups:
            state = self._parts.state.get(part, {})
            wholes = {name: self._wholes(value, weights) for name, value in state.items() if name != _STEP}
            for place in range(len(weights)):
                entry = {name: values[place] for name, values in wholes.items()}
                entries.append(entry | {_STEP: state[_STEP].clone()} if state else {})
        return {**self._optimizer.state_dict(), "state": {i: entry for i, entry in enumerate(entries) if entry}}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to what `state_dict` gave in any layout, when the weights are back already.

        Args:
            state: the whole, the same in all processes.

        Raises:
            ValueError: it is of another optimizer, or weights of one group took different numbers of steps.
        """
        self._optimizer.load_state_dict(state)
        for part, weights in self._groups:
            part.copy_(self._own(weights, part))
            entries = [self._optimizer.state.get(weight, {}) for weight in weights]
            if len({(*entry, float(entry.get(_STEP, 0))) for entry in entries}) > 1:
                raise ValueError("weights of one group took different numbers of steps, and under ZeRO they share one")
            names = [name for name in entries[0] if name != _STEP]
            own = {name: self._own([entry[name] for entry in entries], part) for name in names}
            self._parts.state[part] = own | {_STEP: entries[0][_STEP]} if entries[0] else {}
        self._optimizer.state.clear()

    def _wholes(self, part: Tensor, weights: Sequence[Tensor]) -> list[Tensor]:
        """What all processes hold of a group, as its weights are."""
        sizes = [weight.numel() for weight in weights]
        pieces = self._accelerator.gather(part.detach())[: sum(sizes)].split(sizes)
        return [piece.view_as(weight).clone() for piece, weight in zip(pieces, weights, strict=True)]

    def _own(self, tensors: Sequence[Tensor], part: Tensor) -> Tensor:
        """This process's part of tensors that are as the weights of a group."""
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
        processes = self._accelerator.num_processes
        filled = nn.functional.pad(flat, (0, part.numel() * processes - len(flat)))
        return filled.view(processes, -1)[self._accelerator.process_index].clone()


def share(
    accelerator: Accelerator, denoiser: nn.Module, optimizer: torch.optim.Optimizer, max_grad_norm: float
) -> tuple[ZeroModel, ZeroOptimizer]:
    """Have DeepSpeed share the optimizer's state, and under ZeRO 2 the gradients.

    Args:
        accelerator: the accelerator of the run.
        denoiser: on its device. It holds what trains, all of it in float32.
        optimizer: over that, fresh.
        max_grad_norm: what gradients are clipped to.
    """
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)  # it tells of each step that is skipped, as fera does
    groups = [{**group, "params": list(group["params"])} for group in optimizer.param_groups if group["params"]]
    parts = type(optimizer)(groups)  # type: ignore[call-arg]
    size = sum(weight.numel() for group in groups for weight in group["params"])
    with _in_order(denoiser):
        settings = _settings(accelerator, size, max_grad_norm)
        engine, *_ = deepspeed.initialize(model=denoiser, optimizer=parts, config=settings)
    return ZeroModel(engine), ZeroOptimizer(engine, parts, optimizer, accelerator)


def _settings(accelerator: Accelerator, size: int, max_grad_norm: float) -> dict[str, Any]:
    """DeepSpeed's configuration, for so many numbers that train."""
    return {
        # The loop forms batches and accumulates, so that this is all the engine needs to know of them.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": max_grad_norm,
        # By default a buffer takes two gigabytes, many times what an adapter has to share.
        "zero_optimization": {"stage": int(zero_stage()), "reduce_bucket_size": size, "round_robin_gradients": False},
        "zero_allow_untested_optimizer": True,  # those that it knows are its own; this one is AdamW
        # As in one process: weights stay as they are, and gradients are shared in their precision.
        "torch_autocast": {
            "enabled": accelerator.mixed_precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": float("inf"),
    }


@contextmanager
def _in_order(denoiser: nn.Module) -> Iterator[None]:
    """Have the numbers of each weight in the order of its shape, for DeepSpeed sends no others.

    Those that are frozen are as before after it: convolutions are faster with channels last.
    """
    held = [(weight, weight.data) for weight in denoiser.parameters()]
    for weight, data in held:
        weight.data = data.reshape(-1).view(data.shape)
    yield
    for weight, data in held:
        if not weight.requires_grad:
            weight.data = data
