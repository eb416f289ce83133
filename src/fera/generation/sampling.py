"""Prompts in, images or clips out, and images into files."""

import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image, PngImagePlugin

from fera.errors import FeraError
from fera.generation.late_start import adapters_after
from fera.generation.sources import brought_to, check_sources
from fera.generation.weights import weights_along
from fera.models.families import call_of, video_of
from fera.models.pairs import Pairs
from fera.version import __version__


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    negative_prompt: str = "",
    seed: int = 0,
    num_inference_steps: int = 24,
    guidance_scale: float = 2.0,
    adapter_start: float = 0.0,
    weights: Mapping[str, Sequence[float]] | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    sources: Sequence[Sequence[Image.Image]] = (),
    masks: Sequence[Image.Image] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[Image.Image]:
    """Draw one image a prompt; with a pipeline of videos, one frame.

    Image i starts from noise of its own, drawn on the CPU with seed + i: it depends neither on the batch size nor
    on the other prompts (up to rounding), and every device starts from the same noise.

    Args:
        pipe: a text-to-image diffusers pipeline, with or without adapters.
        prompts: one an image.
        negative_prompt: the negative prompt of all images; acts where guidance does.
        seed: the seed of the first image.
        num_inference_steps: denoising steps, at least 1.
        guidance_scale: strength of classifier-free guidance; up to 1 is off.
        adapter_start: share of the denoising steps that the base does alone before its adapters act, in [0, 1). The
            first steps lay a picture out, the later ones draw it: above 0, more of what the base can draw is kept.
        weights: of adapters by their names, spread evenly over the denoising steps, with straight lines between them;
            the others keep the weight that they have.
        height: of an image in pixels; the pipeline's own when left out. What is given is drawn at, without the detour
            over a table of sizes that some pipelines (PixArt, Sana) take by default.
        width: as `height`.
        batch_size: images at a time, at least 1.
        sources: source pictures of each prompt, for a pipeline that edits or fills; it then draws one prompt at a time.
        masks: what is to be painted, white, for each prompt, for a pipeline that fills.
        progress: called after each denoising step with the (image, step) pairs done, and their total.

    Returns:
        RGB images, in the order of the prompts.

    Raises:
        FeraError: an argument is out of its range, or the pipeline does not take it.
    """
    clips = generate_clips(
        pipe,
        prompts,
        num_frames=1 if video_of(pipe) is not None else None,
        negative_prompt=negative_prompt,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        adapter_start=adapter_start,
        weights=weights,
        height=height,
        width=width,
        batch_size=batch_size,
        sources=sources,
        masks=masks,
        progress=progress,
    )
    return [frames[0] for frames in clips]


def generate_clips(
    pipe: Any,
    prompts: Sequence[str],
    *,
    num_frames: int | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    num_inference_steps: int = 24,
    guidance_scale: float = 2.0,
    adapter_start: float = 0.0,
    weights: Mapping[str, Sequence[float]] | None = None,
    height: int | None = None,
    width: int | None = None,
    batch_size: int = 8,
    sources: Sequence[Sequence[Image.Image]] = (),
    masks: Sequence[Image.Image] = (),
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Image.Image]]:
    """Draw one clip a prompt.

    Args:
        pipe: a text-to-video diffusers pipeline; with one of pictures, each clip is one frame.
        prompts: one a clip.
        num_frames: frames of a clip; the pipeline's own number when left out.
        negative_prompt: as in `generate`, and so all that follows.
        seed: the seed of the first clip.
        num_inference_steps: denoising steps.
        guidance_scale: strength of guidance.
        adapter_start: share of the denoising steps that the base does alone.
        weights: of adapters along the denoising steps.
        height: of a frame in pixels.
        width: as `height`.
        batch_size: clips at a time; more than one takes as much more memory.
        sources: source pictures of each prompt.
        masks: likewise.
        progress: called after each denoising step.

    Returns:
        Frames of each clip, RGB, in the order of the prompts.

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
    clips: list[list[Image.Image]] = []
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
            arguments |= _length(pipe, num_frames)
            if num_frames is None and (video := video_of(pipe)) is not None:
                arguments.pop(video.argument, None)
            if size and "use_resolution_binning" in inspect.signature(type(pipe).__call__).parameters:
                arguments["use_resolution_binning"] = False
            if pairs is not None:
                arguments |= _paired(pairs, sources[start], masks[start] if masks else None, size)
                arguments["prompt"], arguments["generator"] = batch[0], arguments["generator"][0]
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
                clips += _call(pipe, arguments, needs_steps=needs_steps)
    return clips


def save_image(image: Image.Image, path: str | os.PathLike[str], metadata: Mapping[str, object]) -> None:
    """Save an image as PNG, with how it was made as text chunks in it.

    Args:
        image: the image.
        path: the file.
        metadata: names to values, written as text, such as prompt and seed; fera's version is added.
    """
    chunks = PngImagePlugin.PngInfo()
    for name, value in {**metadata, "fera": __version__}.items():
        chunks.add_text(name, str(value))
    image.save(path, format="PNG", pnginfo=chunks)


def file_stem(index: int, prompt: str) -> str:
    """Name for an image's file without its ending: its number and what is speakable of its prompt.

    Letters of any script and digits are kept, all else becomes a dash: it never leads out of a folder.
    """
    words = re.sub(r"[\W_]+", "-", prompt.lower()).strip("-")
    # File systems limit names to 255 bytes.
    slug = words.encode()[:80].decode(errors="ignore").strip("-")
    return f"{index:03d}-{slug}" if slug else f"{index:03d}"


def _paired(
    pairs: Pairs, sources: Sequence[Image.Image], mask: Image.Image | None, size: Mapping[str, int]
) -> dict[str, Any]:
    """Arguments of a pipeline for one prompt's source pictures."""
    if len(size) < 2:
        return pairs.arguments(sources, mask, None)
    drawn = (size["width"], size["height"])
    pictures = [brought_to(drawn, picture, pairs) for picture in sources]
    return pairs.arguments(pictures, brought_to(drawn, mask, pairs) if mask is not None else None, drawn)


def _call(pipe: Any, arguments: dict[str, Any], needs_steps: bool) -> list[list[Image.Image]]:
    taken = inspect.signature(type(pipe).__call__).parameters
    if "output_type" in taken and taken["output_type"].default != "pil":  # pipelines of videos give arrays
        arguments["output_type"] = "pil"
    if "callback_on_step_end" not in taken and not needs_steps:
        arguments.pop("callback_on_step_end", None)
    if refused := [name for name in arguments if name not in taken]:
        raise FeraError(f"{type(pipe).__name__} does not take: {', '.join(refused)}")
    try:
        output = pipe(**arguments)
    except FeraError:
        raise
    except ValueError as error:  # diffusers checks sizes and prompts before it starts
        raise FeraError(f"{type(pipe).__name__} cannot draw this: {error}") from error
    return [[image.convert("RGB") for image in frames] for frames in _frames_of(output)]


def _frames_of(output: Any) -> list[list[Image.Image]]:
    """Frames of each clip, or a picture each, as a pipeline names them."""
    if hasattr(output, "frames"):
        clips: list[list[Image.Image]] = output.frames
        return clips
    images: list[Image.Image] = output.image if hasattr(output, "image") else output.images
    return [[image] for image in images]


def _length(pipe: Any, num_frames: int | None) -> dict[str, int]:
    """The argument of a pipeline that says how many frames to draw.

    Raises:
        FeraError: it draws pictures, and more than one frame is asked for.
    """
    if num_frames is None:
        return {}
    if num_frames < 1:
        raise FeraError(f"`num_frames` must be at least 1, got {num_frames}")
    video = video_of(pipe)
    argument = "num_frames" if video is None else video.argument
    if argument not in inspect.signature(type(pipe).__call__).parameters:
        if num_frames == 1:
            return {}
        raise FeraError(
            f"{type(pipe).__name__} draws pictures, no clips of {num_frames} frames: leave `num_frames` out"
        )
    if video is not None and (num_frames - 1) % video.stride:
        near = num_frames - (num_frames - 1) % video.stride
        raise FeraError(
            f"`num_frames` is {num_frames}, but {type(pipe).__name__} draws 1 more than a multiple of {video.stride}: "
            f"{near} or {near + video.stride}"
        )
    if video is not None and video.most is not None and num_frames > video.most:
        raise FeraError(f"`num_frames` is {num_frames}, but this {type(pipe).__name__} draws at most {video.most}")
    return {argument: num_frames}


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
