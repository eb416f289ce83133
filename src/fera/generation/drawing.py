"""What `fera generate` does: a base, adapters and prompts in; a folder of images or clips out."""

import json
import math
import re
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fera.adapters.file import open_adapter
from fera.errors import FeraError
from fera.format import WEIGHTS
from fera.generation.clips import contact_sheet, save_clip
from fera.generation.grids import prompt_grid
from fera.generation.sampling import file_stem, generate_clips, save_image
from fera.generation.sources import read_masks, read_sources
from fera.models.families import video_of
from fera.pipelines.adapters import load_adapter, set_adapters, trace
from fera.pipelines.base import EMOJI, load_base, to_device
from fera.support.files import claim_folder
from fera.support.progress import SILENT, Listener
from fera.traces.curves import routing_curves, save_csv
from fera.version import __version__

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Of clips of bases that do not say theirs.
_FRAME_RATE = 16.0
# A grid of more prompts is no overview any more.
_GRID_PROMPTS = 64


@dataclass(frozen=True)
class Drawing:
    """A request for images.

    Args:
        prompts: one an image.
        output: folder for the images.
        base: a diffusers pipeline's folder or Hub id; the one the first adapter names when left out.
        adapters: path or Hub id, and weight, of each.
        compare_base: draw the base without adapters too.
        trace: plot how the adapters are routed.
        overwrite: replace images of the same names.
        seed: the seed of the first image, counting up from there.
        steps: denoising steps.
        guidance_scale: strength of guidance.
        negative_prompt: the negative prompt of all images.
        adapter_start: share of the denoising steps that the base does alone before the adapters act, in [0, 1).
        sources: source pictures, for a base that edits or fills: a path for each prompt or one for all of them, several
            pictures of a prompt as "a.png|b.png".
        masks: what is to be painted, white, for a base that fills, likewise.
        height: in pixels; the base's own when left out.
        width: as `height`.
        num_frames: frames of a clip, with a base of videos; the base's own number when left out.
        frame_rate: frames a second of clips that are saved; the base's own when left out.
        batch_size: images at a time; clips are drawn one at a time.
        device: where to draw; the fastest there is when left out.
        precision: the precision of the base's weights: "fp32", "fp16" or "bf16".
        offload: where the blocks of the denoiser wait for their use: "none" (on the device), "blocks" (in host memory)
            or "disk" (in the base's files).
    """

    prompts: Sequence[str]
    output: Path
    base: str | None = None
    adapters: Sequence[tuple[str, float]] = field(default_factory=list)
    compare_base: bool = False
    trace: bool = False
    overwrite: bool = False
    seed: int = 0
    steps: int = 24
    guidance_scale: float = 2.0
    negative_prompt: str = ""
    adapter_start: float = 0.0
    sources: Sequence[str] = ()
    masks: Sequence[str] = ()
    height: int | None = None
    width: int | None = None
    num_frames: int | None = None
    frame_rate: float | None = None
    batch_size: int = 8
    device: str | None = None
    precision: str = "fp32"
    offload: str = "none"


def draw(drawing: Drawing, listener: Listener = SILENT) -> list[Path]:
    """Draw images and save them, each batch as soon as it is done.

    Args:
        drawing: what to draw.
        listener: hears what happens.

    Returns:
        The files written, the grid first: `grid.png`, an image a prompt (and `…-base.png` beside it),
        `gates.png` and `gates.csv` of a trace, `generation.json`. Of a clip the image is a contact sheet, and an mp4 of
        the same name is beside it.

    Raises:
        FeraError: something asked for cannot work. Nothing is written then, unless drawing had begun.
    """
    _check(drawing)
    given = Given(read_sources(drawing.sources, len(drawing.prompts)), read_masks(drawing.masks, len(drawing.prompts)))
    files = _Files(drawing)
    opened = [open_adapter(path) for path, _ in drawing.adapters]
    base = drawing.base or next((file.config.base_model_name_or_path for file in opened), None) or EMOJI
    files.claim()
    pipe = _load(base, drawing, names=(names := _adapter_names([path for path, _ in drawing.adapters])))
    listener.say(f"base: {base}")
    for name, (path, weight) in zip(names, drawing.adapters, strict=True):
        listener.say(f"adapter {name}: {path}, weight {weight:g}")

    rows: dict[str, list[Image.Image]] = {}
    if given.sources:
        rows["source"] = [pictures[0] for pictures in given.sources]
    label = " + ".join(names) if names else "base"
    details: dict[str, object] = {
        "base": base,
        "adapters": ", ".join(f"{path}={weight:g}" for path, weight in drawing.adapters),
    }
    if drawing.compare_base:
        set_adapters(pipe, [])
        rows["base"] = _draw_row(pipe, drawing, given, files.base_images, files, {"base": base}, listener, "base")
        set_adapters(pipe, names, [weight for _, weight in drawing.adapters])
    with ExitStack() as stack:
        routings = stack.enter_context(trace(pipe)) if drawing.trace else []
        rows[label] = _draw_row(pipe, drawing, given, files.images, files, details, listener, label)
    shown = {name: images[:_GRID_PROMPTS] for name, images in rows.items()}
    save_image(prompt_grid(shown, drawing.prompts[:_GRID_PROMPTS]), files.grid, _sampling(drawing) | details)
    if len(drawing.prompts) > _GRID_PROMPTS:
        listener.say(f"the grid shows the first {_GRID_PROMPTS} of {len(drawing.prompts)} prompts")
    if drawing.trace:
        from fera.traces.plot import plot_routing

        curves = routing_curves(routings)
        plot_routing(curves, files.plot)
        save_csv(curves, files.table)
    files.record.write_text(_record(drawing, base, names, files), encoding="utf-8")
    return [*files.all, *files.clips]


def parse_adapter(text: str) -> tuple[str, float]:
    """Read `PATH` or `PATH=WEIGHT`.

    Raises:
        FeraError: the weight is not a number.
    """
    path, equals, weight = text.rpartition("=")
    if not equals or Path(text).exists():
        return text, 1.0
    try:
        value = float(weight)
    except ValueError:
        raise FeraError(
            f"`adapters` {text}: the weight {weight!r} is not a number, and there is no such path"
        ) from None
    if not math.isfinite(value):
        raise FeraError(f"`adapters` {text}: the weight must be finite")
    return path, value


def read_prompts(prompts: Sequence[str], file: Path | None) -> list[str]:
    """Prompts as given, then those of a file, one a line; empty lines are skipped.

    Raises:
        FeraError: the file cannot be read.
    """
    if file is None:
        return list(prompts)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise FeraError(f"prompt file {file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise FeraError(f"prompt file {file} is not UTF-8 text: {error}") from error
    return [*prompts, *(line.strip() for line in lines if line.strip())]


@dataclass(frozen=True)
class Given:
    """What the prompts of a drawing are given.

    Args:
        sources: source pictures of each prompt; empty where the base needs none.
        masks: one a prompt; likewise.
    """

    sources: list[list[Image.Image]]
    masks: list[Image.Image]


class _Files:
    """The files of a drawing."""

    def __init__(self, drawing: Drawing) -> None:
        stems = [file_stem(index, prompt) for index, prompt in enumerate(drawing.prompts)]
        self._drawing = drawing
        folder = drawing.output
        self.grid = folder / "grid.png"
        self.images = [folder / f"{stem}.png" for stem in stems]
        self.base_images = [folder / f"{stem}-base.png" for stem in stems] if drawing.compare_base else []
        self.plot, self.table = folder / "gates.png", folder / "gates.csv"
        self.record = folder / "generation.json"
        traced = [self.plot, self.table] if drawing.trace else []
        self.all = [self.grid, *traced, *self.images, *self.base_images, self.record]
        self.clips: list[Path] = []

    def claim(self) -> None:
        """Make the folder, or refuse where files would be replaced unasked."""
        clips = [path.with_suffix(".mp4") for path in (*self.images, *self.base_images)]
        held = [path.name for path in (*self.all, *clips) if path.exists()]
        claim_folder(self._drawing.output, held, overwrite=self._drawing.overwrite)


def _check(drawing: Drawing) -> None:
    if not drawing.prompts:
        raise FeraError('nothing to draw: give a prompt ("a red heart") or `prompt_file`')
    for name, value, least in (
        ("steps", drawing.steps, 1),
        ("batch_size", drawing.batch_size, 1),
        ("guidance_scale", drawing.guidance_scale, 0),
        ("height", drawing.height, 8),
        ("width", drawing.width, 8),
        ("num_frames", drawing.num_frames, 1),
    ):
        if value is not None and not value >= least:
            raise FeraError(f"`{name}` must be at least {least}, got {value}")
    if drawing.frame_rate is not None and not 0 < drawing.frame_rate <= 1000:
        raise FeraError(f"`frame_rate` must lie above 0 and up to 1000, got {drawing.frame_rate}")
    if not 0 <= drawing.adapter_start < 1:
        raise FeraError(f"`adapter_start` must lie in [0, 1), got {drawing.adapter_start}")
    needing = (
        ("compare_base", drawing.compare_base),
        ("trace", drawing.trace),
        ("adapter_start", drawing.adapter_start > 0),
    )
    for name, asked in needing:
        if asked and not drawing.adapters:
            raise FeraError(f"`{name}` needs `adapters`")


def _load(base: str, drawing: Drawing, names: Sequence[str]) -> Any:
    try:
        pipe = load_base(base, dtype=_DTYPES[drawing.precision])
    except FeraError as error:
        if drawing.base is None and base != EMOJI:
            raise FeraError(
                f"{error}. The adapter names this base; where you have it elsewhere, give `base`"
            ) from error
        raise
    for name, (path, _) in zip(names, drawing.adapters, strict=True):
        load_adapter(pipe, path, adapter_name=name)
    if names:
        set_adapters(pipe, list(names), [weight for _, weight in drawing.adapters])
    to_device(pipe, drawing.device, drawing.offload)
    return pipe


def _draw_row(
    pipe: Any,
    drawing: Drawing,
    given: Given,
    paths: Sequence[Path],
    files: "_Files",
    details: dict[str, object],
    listener: Listener,
    label: str,
) -> list[Image.Image]:
    """Draw all prompts once, saving each batch when it is done; of clips, contact sheets are given."""
    count, video = len(drawing.prompts), video_of(pipe)
    size = drawing.batch_size if video is None or drawing.num_frames == 1 else 1
    rate = drawing.frame_rate or (_FRAME_RATE if video is None else video.frame_rate)
    images: list[Image.Image] = []
    for start in range(0, count, size):
        prompts = drawing.prompts[start : start + size]
        clips = generate_clips(
            pipe,
            prompts,
            num_frames=drawing.num_frames,
            negative_prompt=drawing.negative_prompt,
            seed=drawing.seed + start,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance_scale,
            adapter_start=drawing.adapter_start,
            height=drawing.height,
            width=drawing.width,
            batch_size=size,
            sources=given.sources[start : start + size],
            masks=given.masks[start : start + size],
            progress=lambda done, total, before=start: listener.advance(  # type: ignore[misc]
                f"drawing {label}", before * drawing.steps + done, count * drawing.steps
            ),
        )
        for index, frames in enumerate(clips, start=start):
            about = {"prompt": drawing.prompts[index], "seed": drawing.seed + index} | _sampling(drawing) | details
            if len(frames) > 1:
                files.clips.append(paths[index].with_suffix(".mp4"))
                save_clip(frames, files.clips[-1], rate, about)
            images.append(contact_sheet(frames))
            save_image(images[-1], paths[index], about)
    listener.advance(f"drawing {label}", count * drawing.steps, count * drawing.steps)
    return images


def _adapter_names(paths: Sequence[str]) -> list[str]:
    """What to call adapters: by their folders, `runs/ink/adapter` being "ink"; numbered where that is not unique."""
    names: list[str] = []
    for path in paths:
        parts = [part for part in Path(path).absolute().parts if part != "adapter"]
        stem = parts[-2] if parts[-1] == WEIGHTS else parts[-1].removesuffix(".safetensors")
        name = re.sub(r"[\W_]+", "-", stem).strip("-") or "adapter"
        if hasattr(nn.ModuleDict(), name):  # such as "train", which `check_name` refuses
            name = f"adapter-{name}"
        taken = sum(other == name or other.startswith(f"{name}-") for other in names)
        names.append(f"{name}-{taken + 1}" if name in names else name)
    return names


def _sampling(drawing: Drawing) -> dict[str, object]:
    return {
        "negative_prompt": drawing.negative_prompt,
        "steps": drawing.steps,
        "guidance_scale": drawing.guidance_scale,
        "adapter_start": drawing.adapter_start,
    }


def _given(drawing: Drawing, index: int) -> dict[str, str]:
    """The paths that a prompt was given."""
    entries = {"source": drawing.sources, "mask": drawing.masks}
    return {name: given[index if len(given) > 1 else 0] for name, given in entries.items() if given}


def _record(drawing: Drawing, base: str, names: Sequence[str], files: _Files) -> str:
    adapters = [
        {"name": name, "path": path, "weight": weight}
        for name, (path, weight) in zip(names, drawing.adapters, strict=True)
    ]
    images = [
        {"prompt": prompt, "seed": drawing.seed + index, "file": path.name, **_given(drawing, index)}
        for index, (prompt, path) in enumerate(zip(drawing.prompts, files.images, strict=True))
    ]
    settings = _sampling(drawing) | {
        "height": drawing.height,
        "width": drawing.width,
        "num_frames": drawing.num_frames,
        "frame_rate": drawing.frame_rate,
        "precision": drawing.precision,
    }
    record = {"fera": __version__, "base": base, "adapters": adapters, **settings, "images": images}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"
