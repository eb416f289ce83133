"""Calling a pipeline batch by batch: noise of its own for each prompt, adapters that act late, progress."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from PIL import Image

from fera.errors import FeraError
from fera.generation.late_start import adapters_after
from fera.generation.sources import brought_to, check_sources
from fera.generation.weights import weights_along
from fera.models.families import call_of, video_of
from fera.models.pairs import Pairs

# What a pipeline makes of one prompt: frames, or a sound.
Drawn = TypeVar("Drawn")


def draw_batches(
    pipe: Any,
    prompts: Sequence[str],
    call: Callable[[dict[str, Any], bool], list[Drawn]],
    *,
    length: Mapping[str, Any],
    negative_prompt: str,
    seed: int,
    num_inference_steps: int,
    guidance_scale: float,
    adapter_start: float,
    weights: Mapping[str, Sequence[float]] | None,
    height: int | None,
    width: int | None,
    batch_size: int,
    sources: Sequence[Sequence[Image.Image]],
    masks: Sequence[Image.Image],
    progress: Callable[[int, int], None] | None,
) -> list[Drawn]:
    """Call a pipeline batch by batch.

    Args:
        pipe: the pipeline.
        prompts: all of them.
        call: given the arguments of a call, and whether something must hear of each step, it calls the pipeline.
        length: the argument that says how long a clip or a sound is; empty for the pipeline's own.
        negative_prompt: as in `generate`, and so all that follows.
        seed: likewise.
        num_inference_steps: likewise.
        guidance_scale: likewise.
        adapter_start: likewise.
        weights: likewise.
        height: likewise.
        width: likewise.
        batch_size: likewise.
        sources: likewise.
        masks: likewise.
        progress: likewise.

    Returns:
        What `call` gave, one a prompt.

    Raises:
        FeraError: an argument is out of its range, or the pipeline does not take it.
    """
    for name, value in (("num_inference_steps", num_inference_steps), ("batch_size", batch_size)):
        if value < 1:
            raise FeraError(f"{name} must be at least 1, got {value}")
    if not 0 <= adapter_start < 1:
        raise FeraError(f"adapter_start must lie in [0, 1), got {adapter_start!r}")
    if isinstance(prompts, str):
        raise FeraError(f"prompts must be a list of prompts, got the string {prompts!r}")
    size = {name: value for name, value in (("height", height), ("width", width)) if value is not None}
    pairs = check_sources(pipe, [len(pictures) for pictures in sources], len(masks))
    if pairs is not None:
        batch_size = 1  # most of such pipelines take one prompt at a time
    multiple = getattr(pipe, "vae_scale_factor", 1)
    for name, value in size.items():
        if value < 1 or value % multiple:  # some pipelines round in silence
            raise FeraError(f"{type(pipe).__name__} cannot draw this: {name} {value} is not divisible by {multiple}")
    drawn: list[Drawn] = []
    with _quiet(pipe):
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            arguments: dict[str, Any] = {
                **call_of(pipe, guidance_scale),
                "prompt": batch,
                "num_inference_steps": num_inference_steps,
                "generator": [torch.Generator().manual_seed(seed + start + i) for i in range(len(batch))],
                **size,
            }
            if not length and (video := video_of(pipe)) is not None:
                arguments.pop(video.argument, None)
            arguments |= length
            if size and "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters:
                arguments["use_resolution_binning"] = False
            if pairs is not None:
                arguments |= _paired(pairs, sources[start], masks[start] if masks else None, size)
                arguments["generator"] = arguments["generator"][0]
                named = pairs.prompt or (lambda prompt, _: prompt)
                arguments["prompt"] = named(batch[0], len(sources[start]))
                taken = inspect.signature(type(pipe).__call__).parameters
                for name in {*size, "prompt"} - taken.keys():
                    del arguments[name]  # as large as the source; and some are told nothing in words
            if "negative_prompt" in arguments or negative_prompt:
                arguments["negative_prompt"] = negative_prompt if pairs else [negative_prompt] * len(batch)
            with (
                adapters_after(pipe, round(adapter_start * num_inference_steps)) as late,
                weights_along(pipe, weights or {}, num_inference_steps) as weigh,
            ):
                moves = any(len(values) > 1 for values in (weights or {}).values())
                listeners = [late] * (adapter_start > 0) + [weigh] * moves
                needs_steps = bool(listeners)
                if progress is not None:
                    total = len(prompts) * num_inference_steps
                    listeners.append(_counter(progress, start * num_inference_steps, len(batch), total))
                if listeners:
                    arguments["callback_on_step_end"] = _after_each_step(listeners)
                drawn += call(arguments, needs_steps)
    return drawn


def call_pipeline(pipe: Any, arguments: dict[str, Any]) -> Any:
    """What a pipeline answers.

    Raises:
        FeraError: it does not take an argument, or refuses what it is told.
    """
    taken = inspect.signature(type(pipe).__call__).parameters
    if refused := [name for name in arguments if name not in taken]:
        raise FeraError(f"{type(pipe).__name__} does not take: {', '.join(refused)}")
    try:
        return pipe(**arguments)
    except FeraError:
        raise
    except ValueError as error:  # diffusers checks sizes and prompts before it starts
        raise FeraError(f"{type(pipe).__name__} cannot draw this: {error}") from error


def _paired(
    pairs: Pairs, sources: Sequence[Image.Image], mask: Image.Image | None, size: Mapping[str, int]
) -> dict[str, Any]:
    """Arguments of a pipeline for one prompt's source pictures."""
    if len(size) < 2:
        return pairs.arguments(sources, mask, None)
    drawn = (size["width"], size["height"])
    pictures = [brought_to(drawn, picture, pairs) for picture in sources]
    return pairs.arguments(pictures, brought_to(drawn, mask, pairs) if mask is not None else None, drawn)


def _counter(progress: Callable[[int, int], None], before: int, batch: int, total: int) -> Callable[[int], None]:
    return lambda done: progress(min(before + done * batch, total), total)


def _after_each_step(listeners: Sequence[Callable[[int], None]]) -> Callable[..., Any]:
    """A callback of diffusers' pipelines that tells the number of steps done."""

    def tell(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        for listener in listeners:
            listener(step + 1)
        return tensors

    return tell


@contextmanager
def _quiet(pipe: Any) -> Iterator[None]:
    """Without the progress bars of the pipeline."""
    before = getattr(pipe, "_progress_bar_config", {})
    pipe.set_progress_bar_config(**{**before, "disable": True})
    try:
        yield
    finally:
        pipe.set_progress_bar_config(**before)
