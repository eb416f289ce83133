"""What a pipeline tells its denoiser of a caption, read off a call of the pipeline itself.

The pipeline is called as users call it and stopped at the first forward of its denoiser, whose arguments are what its
text encoders made: templates, instructions, limits and defaults are the pipeline's own. Captions go one at a time, so
that none is padded for the sake of another. Pipelines draw without gradients; where the caller wants them, they are let
through.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fera.models.registry import is_known

Arguments = dict[str, Any]


class _Stop(Exception):
    """The denoiser was called; the rest of the pipeline's work is not wanted."""


def reader(
    take: Callable[[Arguments], dict[str, Tensor]], **call: Any
) -> Callable[[Any, list[str], torch.device], dict[str, Tensor]]:
    """How a family encodes captions, where its pipeline says it all.

    Args:
        take: the arguments of a forward, by name, to conditions by name, each with one caption along its first axis.
        **call: arguments of the pipeline beside the prompt: without guidance, so that there is one caption a forward.

    Returns:
        (pipeline, captions, device) to conditions, as `Family.encode`. Of unequal length, they are padded.
    """

    def encode(pipe: Any, captions: list[str], device: torch.device) -> dict[str, Tensor]:
        taken = [take(first_forward(pipe, caption, device, call)) for caption in captions]
        return together([{name: value[0] for name, value in conditions.items()} for conditions in taken])

    return encode


def named(*names: str) -> Callable[[Arguments], dict[str, Tensor]]:
    """Conditions that are arguments of the forward as they are."""

    def take(arguments: Arguments) -> dict[str, Tensor]:
        return {name: arguments[name] for name in names}

    return take


def first_forward(pipe: Any, caption: str, device: torch.device, call: Mapping[str, Any]) -> Arguments:
    """Arguments that a pipeline's denoiser gets first, by name.

    Args:
        pipe: the pipeline; its text encoders are on the device, its denoiser and autoencoder may be anywhere.
        caption: the prompt.
        device: for random numbers; the pipeline's own generator is left alone.
        call: arguments of the pipeline beside the prompt.
    """
    denoiser = next(part for part in pipe.components.values() if isinstance(part, nn.Module) and is_known(part))
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    found: Arguments = {}

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        found.update(zip(names, args, strict=False), **kwargs)
        raise _Stop

    # What the pipeline's own function is before it is told to compute no gradients.
    draw = inspect.unwrap(type(pipe).__call__) if torch.is_grad_enabled() else type(pipe).__call__
    # Before the hooks of an adapter, whose router may be on another device.
    hook = denoiser.register_forward_pre_hook(stop, with_kwargs=True, prepend=True)
    bar = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**bar, "disable": True})
    try:
        with _executing_on(pipe, device):
            generator = torch.Generator(device)
            draw(pipe, prompt=caption, num_inference_steps=2, generator=generator, output_type="latent", **call)
    except _Stop:
        pass
    finally:
        hook.remove()
        pipe.set_progress_bar_config(**bar)
    return found


@contextmanager
def _executing_on(pipe: Any, device: torch.device) -> Iterator[None]:
    """Let a pipeline take this for the device that it computes on, which is else that of its first part."""
    own = type(pipe)
    pipe.__class__ = type(own.__name__, (own,), {"__module__": own.__module__, "_execution_device": device})
    try:
        yield
    finally:
        pipe.__class__ = own


def together(conditions: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Conditions of single captions as those of a batch.

    Args:
        conditions: by name, of each caption, without an axis of captions. Where captions differ in length, along the
            first axis, zeros come behind the shorter ones; masks among the conditions say so to the denoiser.

    Returns:
        By name, with captions along the first axis.
    """
    names = conditions[0] if conditions else {}
    return {name: _stack([condition[name] for condition in conditions]) for name in names}


def _stack(values: Sequence[Tensor]) -> Tensor:
    if len({value.shape for value in values}) > 1:
        longest = max(len(value) for value in values)
        values = [functional.pad(value, [0, 0] * (value.ndim - 1) + [0, longest - len(value)]) for value in values]
    return torch.stack(list(values))
