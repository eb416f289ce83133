"""Prompts in; images, clips or sounds out; and images into files."""

import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from PIL import Image, PngImagePlugin

from fera.data.sounds.sound import Waveform
from fera.errors import FeraError
from fera.generation.calling import call_pipeline, draw_batches
from fera.models.families import sound_of, video_of
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
    return draw_batches(
        pipe,
        prompts,
        lambda arguments, needs_steps: _call_for_frames(pipe, arguments, needs_steps=needs_steps),
        length=_length(pipe, num_frames),
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


def generate_sounds(
    pipe: Any,
    prompts: Sequence[str],
    *,
    seconds: float | None = None,
    negative_prompt: str = "",
    seed: int = 0,
    num_inference_steps: int = 24,
    guidance_scale: float = 2.0,
    adapter_start: float = 0.0,
    weights: Mapping[str, Sequence[float]] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Waveform]:
    """Draw one sound a prompt, one after the other: some pipelines let the prompts of a batch change each other.

    Args:
        pipe: a text-to-sound diffusers pipeline that fera knows.
        prompts: one a sound.
        seconds: length; the pipeline's own when left out.
        negative_prompt: as in `generate`, and so all that follows.
        seed: the seed of the first sound.
        num_inference_steps: denoising steps.
        guidance_scale: strength of guidance.
        adapter_start: share of the denoising steps that the base does alone.
        weights: of adapters along the denoising steps.
        progress: called after each denoising step.

    Returns:
        The sounds, in the order of the prompts.

    Raises:
        FeraError: an argument is out of its range, or the pipeline does not take it.
    """
    sound = sound_of(pipe)
    if sound is None:
        raise FeraError(f"{type(pipe).__name__} makes no sound that fera knows of")
    if seconds is not None and not 0 < seconds <= sound.longest + 1e-6:
        raise FeraError(f"`seconds` must lie above 0 and up to {sound.longest:.4g} with this base, got {seconds:g}")
    return draw_batches(
        pipe,
        prompts,
        lambda arguments, needs_steps: _call_for_sound(pipe, arguments, sound.rate),
        length={} if seconds is None else {sound.argument: seconds},
        negative_prompt=negative_prompt,
        seed=seed,
        num_inference_steps=num_inference_steps,
        guidance_scale=guidance_scale,
        adapter_start=adapter_start,
        weights=weights,
        height=None,
        width=None,
        batch_size=1,
        sources=(),
        masks=(),
        progress=progress,
    )


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


def _call_for_frames(pipe: Any, arguments: dict[str, Any], needs_steps: bool) -> list[list[Image.Image]]:
    taken = inspect.signature(type(pipe).__call__).parameters
    if "output_type" in taken and taken["output_type"].default != "pil":  # pipelines of videos give arrays
        arguments["output_type"] = "pil"
    if "callback_on_step_end" not in taken and not needs_steps:
        arguments.pop("callback_on_step_end", None)
    output = call_pipeline(pipe, arguments)
    return [[image.convert("RGB") for image in frames] for frames in _frames_of(output)]


def _call_for_sound(pipe: Any, arguments: dict[str, Any], rate: int) -> list[Waveform]:
    taken = inspect.signature(type(pipe).__call__).parameters
    if "callback_on_step_end" not in taken and (tell := arguments.pop("callback_on_step_end", None)) is not None:
        arguments["callback"] = lambda step, timestep, latents: tell(pipe, step, timestep, {})
    output = call_pipeline(pipe, arguments | {"output_type": "pt"})
    return [Waveform(sound.detach().float().cpu().clamp(-1, 1).numpy(), rate) for sound in output.audios]


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
