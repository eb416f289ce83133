"""What is asked of a drawing: a base, adapters, prompts, and how they are drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fera.errors import FeraError


@dataclass(frozen=True)
class Drawing:
    """A request for images.

    Args:
        prompts: one an image.
        output: folder for the images.
        base: a diffusers pipeline's folder or Hub id; the one the first adapter names when left out.
        adapters: path or Hub id, and weight, of each; several weights are spread over the denoising steps.
        gates: "routed", "uniform" or weights such as "0.2,0.3,0.5", one an adapter; all are routed when left out.
        experts: "all", or a factor for each expert's gate such as "1,0,1", one an adapter; likewise.
        compare_base: draw the base without adapters too.
        trace: plot how the adapters are routed.
        live: write what each picture looks like, and its gate, at each step, to be followed while it is drawn.
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
        seconds: length of a sound, with a base of sound; the base's own when left out.
        frame_rate: frames a second of clips that are saved; the base's own when left out.
        batch_size: images at a time; clips and sounds are drawn one at a time.
        device: where to draw; the fastest there is when left out.
        precision: the precision of the base's weights: "fp32", "fp16" or "bf16".
        offload: where the blocks of the denoiser wait for their use: "none" (on the device), "blocks" (in host memory)
            or "disk" (in the base's files).
        quantization: how the denoiser's linear layers are held, as in training; "none" as they are.
    """

    prompts: Sequence[str]
    output: Path
    base: str | None = None
    adapters: Sequence[tuple[str, float | Sequence[float]]] = field(default_factory=list)
    gates: Sequence[str] = ()
    experts: Sequence[str] = ()
    compare_base: bool = False
    trace: bool = False
    live: bool = False
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
    seconds: float | None = None
    batch_size: int = 8
    device: str | None = None
    precision: str = "fp32"
    offload: str = "none"
    quantization: str = "none"


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


def check(drawing: Drawing) -> None:
    """Refuse what cannot work, before anything is loaded."""
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
    if drawing.seconds is not None and not drawing.seconds > 0:
        raise FeraError(f"`seconds` must lie above 0, got {drawing.seconds}")
    if drawing.frame_rate is not None and not 0 < drawing.frame_rate <= 1000:
        raise FeraError(f"`frame_rate` must lie above 0 and up to 1000, got {drawing.frame_rate}")
    if not 0 <= drawing.adapter_start < 1:
        raise FeraError(f"`adapter_start` must lie in [0, 1), got {drawing.adapter_start}")
    needing = (
        ("compare_base", drawing.compare_base),
        ("trace", drawing.trace),
        ("adapter_start", drawing.adapter_start > 0),
        ("gates", bool(drawing.gates)),
        ("experts", bool(drawing.experts)),
    )
    for name, asked in needing:
        if asked and not drawing.adapters:
            raise FeraError(f"`{name}` needs `adapters`")
