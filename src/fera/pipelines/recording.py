"""What a pipeline's scheduler and denoiser exchange at each denoising step, in any diffusers pipeline.

Two places are watched. The scheduler's `step` gets the latent z_t and the model's output after guidance, in the
scheduler's own convention: some denoisers answer with the opposite sign, or take another clock, and their pipelines
put that right before the step. The denoiser's call, just before it, says how the latent lies in the tensors (packed
tokens, appended conditions): `fera.models` reads that, and the same view then serves the scheduler's tensors.
"""

import functools
import inspect
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.components import denoisers
from fera.models.reading import CallReader
from fera.models.registry import find
from fera.pipelines.clean import check_scheduler, clean_after_step


@dataclass(frozen=True)
class DenoisingStep:
    """One step of a scheduler.

    Args:
        component: name of the denoiser in its pipeline.
        timestep: as the scheduler got it.
        latent: z_t, shape (B, C, H, W) or (B, C, L), float32; B pictures, whatever guidance does.
        prediction: the model's output with guidance, same shape.
        clean: the clean latent that it implies, same shape.
    """

    component: str
    timestep: float
    latent: Tensor
    prediction: Tensor
    clean: Tensor


@contextmanager
def record_denoising(
    pipe: Any, receive: Callable[[DenoisingStep], None], missed: Callable[[FeraError], None] | None = None
) -> Iterator[None]:
    """Watch every denoising step of a pipeline inside the block. Its results stay the same, bit for bit.

    Args:
        pipe: a diffusers pipeline whose denoiser fera knows.
        receive: called with each step, while the pipeline waits.
        missed: called in its place with why a step cannot be read, and the pipeline goes on; an error ends it when left
            out.

    Raises:
        FeraError: fera knows no denoiser in it, or cannot read its scheduler or the way its latent is laid out.
    """
    check_scheduler(pipe.scheduler)
    last: dict[str, _Call] = {}
    with ExitStack() as stack:
        for name, denoiser in denoisers(pipe).items():
            note = functools.partial(_note, last, name)
            stack.callback(denoiser.register_forward_pre_hook(note, with_kwargs=True).remove)

        def read(output: Tensor, timestep: Any, sample: Tensor) -> DenoisingStep:
            if "call" not in last:
                raise FeraError(f"the scheduler of this {type(pipe).__name__} stepped before its denoiser was called")
            clean = clean_after_step(pipe.scheduler, output, timestep, sample)
            call = last["call"]
            view = call.view_of(sample)
            moment = float(torch.as_tensor(timestep).flatten()[0])
            return DenoisingStep(call.component, moment, *(view(tensor) for tensor in (sample, output, clean)))

        def watch(output: Tensor, timestep: Any, sample: Tensor) -> None:
            try:
                step = read(output, timestep, sample)
            except FeraError as error:
                if missed is None:
                    raise
                missed(error)
                return
            receive(step)

        stack.enter_context(_watched_steps(pipe.scheduler, watch))
        yield


@contextmanager
def _watched_steps(scheduler: Any, watch: Callable[[Tensor, Any, Tensor], None]) -> Iterator[None]:
    step = scheduler.step
    signature = inspect.signature(type(scheduler).step)
    was_own = "step" in vars(scheduler)

    # Pipelines look at the signature, to see whether a step takes a generator.
    @functools.wraps(type(scheduler).step)
    def watched(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self is not scheduler:  # a copy that the pipeline made, for sound say
            return type(self).step(self, *args, **kwargs)
        given = signature.bind(self, *args, **kwargs).arguments
        sample = given["sample"].clone()  # a step may write into its argument
        result = step(*args, **kwargs)
        with torch.no_grad():
            watch(given["model_output"], given["timestep"], sample)
        return result

    # A bound method, not a closure: a deep copy of the scheduler then steps for itself.
    scheduler.step = types.MethodType(watched, scheduler)
    try:
        yield
    finally:
        if was_own:
            scheduler.step = step
        else:
            del scheduler.step


def _note(
    last: dict[str, "_Call"], component: str, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    names = list(inspect.signature(type(denoiser).forward).parameters)[1:]
    last["call"] = _Call(component, denoiser, {**dict(zip(names, args, strict=False)), **kwargs})


@dataclass(frozen=True)
class _Call:
    """The last call of a denoiser, its arguments by name."""

    component: str
    denoiser: nn.Module
    arguments: dict[str, Any]

    def view_of(self, sample: Tensor) -> Callable[[Tensor], Tensor]:
        """How to see the scheduler's tensors as (B, C, H, W) or (B, C, L), told by its latent."""
        seen = CallReader(self.denoiser).latent(self.denoiser, (), self.arguments)
        if sample.shape[1:] == seen.shape[1:]:
            return lambda tensor: tensor.float()
        places = [place for place in (0, 1) if self._fits(sample)]
        if not places:
            raise FeraError(
                f"the scheduler's latent, of shape {tuple(sample.shape)}, is not found in the call of its "
                f"{type(self.denoiser).__name__}: fera cannot see how it lies there, so there are no energies to show"
            )
        # References come before or after the tokens of the latent: the right place shows what the denoiser saw.
        expected = seen[: len(sample)].float().flatten()
        views = [functools.partial(self._seen_at, place) for place in places]
        return max(views, key=lambda view: float(torch.cosine_similarity(view(sample).flatten(), expected, dim=0)))

    def _fits(self, sample: Tensor) -> bool:
        value = self.arguments.get(find(self.denoiser).latent)
        return (
            isinstance(value, Tensor)
            and value.ndim == sample.ndim
            and value.shape[0] % sample.shape[0] == 0
            and all(own <= whole for own, whole in zip(sample.shape[1:], value.shape[1:], strict=True))
        )

    def _seen_at(self, place: int, tensor: Tensor) -> Tensor:
        """A tensor in the place of the latent in the call, as the denoiser's entry sees it; at the end for place 1."""
        name = find(self.denoiser).latent
        value = self.arguments[name]
        whole = torch.zeros(value.shape, dtype=torch.float32, device=tensor.device)
        start = value.shape[1] - tensor.shape[1] if place else 0
        inside = (slice(None), slice(start, start + tensor.shape[1]), *(slice(side) for side in tensor.shape[2:]))
        whole[inside] = tensor.float().repeat(value.shape[0] // tensor.shape[0], *[1] * (tensor.ndim - 1))
        picture = CallReader(self.denoiser).latent(self.denoiser, (), self.arguments | {name: whole})
        return picture[: len(tensor)]
