"""What `fera generate` does: a base, adapters and prompts in; a folder of images, clips or sounds out."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from fera.adapters.file import open_adapter
from fera.errors import FeraError
from fera.format import WEIGHTS
from fera.generation.grids import prompt_grid
from fera.generation.live import Live
from fera.generation.request import Drawing, check, read_prompts
from fera.generation.rows import DrawnFiles, Given, Row, record_of, sampling_of
from fera.generation.sampling import save_image
from fera.generation.sources import read_masks, read_sources
from fera.generation.steering import AdapterUse, parse_adapter, parse_weights, read_uses, steered
from fera.pipelines.adapters import load_adapter, set_adapters, trace
from fera.pipelines.base import EMOJI, check_held, load_base, quantize_denoisers, to_device
from fera.support.progress import SILENT, Listener
from fera.traces.curves import routing_curves, save_csv

__all__ = ["Drawing", "draw", "parse_adapter", "parse_weights", "read_prompts"]

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# A grid of more prompts is no overview any more.
_GRID_PROMPTS = 64


def draw(drawing: Drawing, listener: Listener = SILENT) -> list[Path]:
    """Draw images and save them, each batch as soon as it is done.

    Args:
        drawing: what to draw.
        listener: hears what happens.

    Returns:
        The files written, the grid first: `grid.png`, an image a prompt (and `…-base.png` beside it),
        `gates.png` and `gates.csv` of a trace, `generation.json`. Of a clip the image is a contact sheet, and an mp4 of
        the same name is beside it; of a sound a spectrogram, and a wav. What `live` writes is not among them.

    Raises:
        FeraError: something asked for cannot work. Nothing is written then, unless drawing had begun.
    """
    check(drawing)
    uses = read_uses(drawing.adapters, drawing.gates, drawing.experts)
    given = Given(read_sources(drawing.sources, len(drawing.prompts)), read_masks(drawing.masks, len(drawing.prompts)))
    files = DrawnFiles(drawing)
    opened = [open_adapter(use.path) for use in uses]
    base = drawing.base or next((file.config.base_model_name_or_path for file in opened), None) or EMOJI
    files.claim()
    names = _adapter_names([use.path for use in uses])
    pipe = _load(base, drawing, dict(zip(names, uses, strict=True)))
    listener.say(f"base: {base}")
    for name, use in zip(names, uses, strict=True):
        listener.say(f"adapter {name}: {use.path}, weight {':'.join(f'{weight:g}' for weight in use.weights)}")

    rows: dict[str, list[Image.Image]] = {}
    if given.sources:
        rows["source"] = [pictures[0] for pictures in given.sources]
    live = Live(files.live, pipe, drawing.steps, listener) if drawing.live else None
    row = Row(pipe, drawing, given, files, live, listener)
    label = " + ".join(names) if names else "base"
    details: dict[str, object] = {"base": base, "adapters": ", ".join(use.text for use in uses)}
    if drawing.compare_base:
        set_adapters(pipe, [])
        rows["base"] = row.draw("base", files.base_images, {"base": base}, {})
        _activate(pipe, dict(zip(names, uses, strict=True)))
    with ExitStack() as stack:
        stack.enter_context(steered(pipe, list(zip(names, uses, strict=True))))
        routings = stack.enter_context(trace(pipe)) if drawing.trace else []
        rows[label] = row.draw(label, files.images, details, dict(zip(names, uses, strict=True)))
    shown = {name: images[:_GRID_PROMPTS] for name, images in rows.items()}
    save_image(prompt_grid(shown, drawing.prompts[:_GRID_PROMPTS]), files.grid, sampling_of(drawing) | details)
    if len(drawing.prompts) > _GRID_PROMPTS:
        listener.say(f"the grid shows the first {_GRID_PROMPTS} of {len(drawing.prompts)} prompts")
    if drawing.trace:
        from fera.traces.plot import plot_routing

        curves = routing_curves(routings)
        plot_routing(curves, files.plot)
        save_csv(curves, files.table)
    files.record.write_text(record_of(drawing, base, names, uses, files), encoding="utf-8")
    return [*files.all, *files.beside]


def _load(base: str, drawing: Drawing, uses: Mapping[str, AdapterUse]) -> Any:
    check_held(drawing.quantization, drawing.device, drawing.offload)
    try:
        pipe = load_base(base, dtype=_DTYPES[drawing.precision])
    except FeraError as error:
        if drawing.base is None and base != EMOJI:
            raise FeraError(
                f"{error}. The adapter names this base; where you have it elsewhere, give `base`"
            ) from error
        raise
    quantize_denoisers(pipe, drawing.quantization, drawing.device, _DTYPES[drawing.precision], drawing.offload)
    for name, use in uses.items():
        load_adapter(pipe, use.path, adapter_name=name)
    if uses:
        _activate(pipe, uses)
        with steered(pipe, list(uses.items())):  # what does not fit is said before anything is drawn
            pass
    to_device(pipe, drawing.device, drawing.offload)
    return pipe


def _activate(pipe: Any, uses: Mapping[str, AdapterUse]) -> None:
    set_adapters(pipe, list(uses), [use.weights[0] for use in uses.values()])


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
