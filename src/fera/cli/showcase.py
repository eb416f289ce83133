"""What `fera demo` does: fine-tune the emoji base to another style, and show what came of it."""

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from PIL import Image

from fera.demo import STYLES, unpack_style
from fera.errors import FeraError
from fera.generation import generate, save_image
from fera.generation.grids import prompt_grid
from fera.pipelines.adapters import load_adapter, trace
from fera.pipelines.base import EMOJI, load_base
from fera.support.progress import Listener
from fera.traces.curves import routing_curves, save_csv
from fera.traces.plot import plot_routing
from fera.training import (
    AdapterConfig,
    DataConfig,
    OptimizationConfig,
    TrainConfig,
    ValidationConfig,
    load_config,
    train,
)
from fera.training.folder.run_folder import RunFolder

# Black line art: the farthest from the base's gradients, so that a glance tells the two apart.
DEFAULT_STYLE = "fluent-emoji-high-contrast"
DEFAULT_STEPS = 480
# What the base's own pictures in docs/base.md are drawn with.
GUIDANCE_SCALE = 3.0
# The base lays a picture out and the adapter draws it: one that acts from the first step on forgets shapes of names
# that it was not trained on. Chosen by looking at pictures of validation names.
ADAPTER_START = 0.25
# Names of the test split, which no adapter has seen in its style; those among them that the base itself draws best.
PROMPTS = (
    "face with tongue",
    "growing heart",
    "minibus",
    "camera",
    "evergreen tree",
    "sunglasses",
    "cherries",
    "telephone",
)


def run_demo(
    output: Path,
    listener: Listener,
    *,
    style: str = DEFAULT_STYLE,
    steps: int = DEFAULT_STEPS,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Fine-tune the emoji base to a style, and draw before and after.

    Args:
        output: the run's folder. Besides what training leaves there it gets `data/` (the style's pictures),
            `grid.png` (base, adapted, real pictures), `gates.png` and `gates.csv`.
        listener: hears what happens.
        style: one of `fera.demo.STYLES`.
        steps: optimizer steps.
        resume: go on with the run in the folder.
        overwrite: replace the run in the folder; an earlier demo is replaced unasked.

    Returns:
        What `summary.json` holds: the training's summary, the style, prompts, times and peak memory.

    Raises:
        FeraError: there is no such style, or training refuses.
    """
    started = time.monotonic()
    if style not in STYLES:
        raise FeraError(f"there is no style {style!r}; there are: {', '.join(STYLES)}")
    if steps < 1:
        raise FeraError(f"`steps` must be at least 1, got {steps}")
    config = demo_config(output, style, steps)
    overwrite = not resume and (overwrite or _is_demo(output))
    RunFolder(output).check(resume=resume, overwrite=overwrite)  # before the style's pictures go there
    listener.say(f"fine-tuning the emoji base to {style}, {steps} steps; the run is in {output}")
    unpack_style(style, style_folder(output, style))
    summary = train(config, resume=resume, overwrite=overwrite, listener=listener)
    trained = time.monotonic()

    listener.say("drawing before and after …")
    pipe = load_base(EMOJI)
    rows: dict[str, Sequence[Image.Image | None]] = {"base": generate(pipe, PROMPTS, guidance_scale=GUIDANCE_SCALE)}
    load_adapter(pipe, output)
    with trace(pipe) as routings:
        rows["adapted"] = generate(pipe, PROMPTS, guidance_scale=GUIDANCE_SCALE, adapter_start=ADAPTER_START)
    rows[f"real {style}"] = _real_pictures(style_folder(output, style) / "test")
    save_image(prompt_grid(rows, PROMPTS), output / "grid.png", {"style": style, "steps": steps})
    curves = routing_curves(routings)
    plot_routing(curves, output / "gates.png")
    save_csv(curves, output / "gates.csv")

    ended = time.monotonic()
    result = asdict(summary) | {
        "style": style,
        "prompts": list(PROMPTS),
        "drawing_seconds": round(ended - trained, 2),
        "total_seconds": round(ended - started, 2),
        "peak_memory_bytes": _peak_memory(),
    }
    (output / "summary.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def demo_config(output: Path, style: str, steps: int) -> TrainConfig:
    """The demo's training run: what a configuration file of your own would say."""
    data = style_folder(output, style)
    return TrainConfig(
        base=EMOJI,
        output_dir=output,
        data=DataConfig(train_data_dir=data / "train", validation_data_dir=data / "test"),
        adapter=AdapterConfig(r=1, num_experts=3, num_bands=3),
        train=OptimizationConfig(
            steps=steps,
            batch_size=8,
            learning_rate=4e-3,
            lr_scheduler="cosine",
            lr_warmup_steps=min(40, steps),
            caption_dropout=0.1,
            checkpointing_steps=100,
            checkpoints_total_limit=1,
        ),
        validation=ValidationConfig(loss_samples=256),
    )


def style_folder(output: Path, style: str) -> Path:
    """Where a demo keeps a style's pictures."""
    return output / "data" / style


def _is_demo(folder: Path) -> bool:
    """Whether the run in a folder is a demo, which a new one may replace."""
    try:
        config = load_config(folder / "config.toml")
    except FeraError:
        return False
    pictures = config.data.train_data_dir
    return config.base == EMOJI and pictures is not None and pictures.is_relative_to(config.output_dir / "data")


def _real_pictures(folder: Path) -> list[Image.Image | None]:
    """The style's own pictures of the prompts; None where it has none."""
    lines = (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines()
    files = {row["text"]: folder / row["file_name"] for row in map(json.loads, lines)}
    pictures: list[Image.Image | None] = []
    for prompt in PROMPTS:
        if prompt in files:
            with Image.open(files[prompt]) as image:
                pictures.append(image.convert("RGB"))
        else:
            pictures.append(None)
    return pictures


def _peak_memory() -> int | None:
    """Most resident memory of this process so far, in bytes; None where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
