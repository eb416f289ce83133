"""How close pictures are to real ones of their caption, and to the base's where nothing was learned.

Both as PEFT's benchmark of image generation measures them (similarity and drift, on DINOv2's features).
"""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from fera.errors import FeraError
from fera.evaluation.drawing import Progress, draw
from fera.evaluation.settings import EvaluationSettings
from fera.generation import prompt_grid
from fera.training.step.parameters import adapter_off, has_adapter

_GRID_PROMPTS = 64


def similarities(
    generated: Tensor, prompts: Sequence[str], real: Tensor, captions: Sequence[str]
) -> list[float | None]:
    """Cosine of each picture's features and those of the real pictures of its caption.

    Args:
        generated: features of the pictures, shape (M, D).
        prompts: what each was asked for.
        real: features of the real pictures, shape (N, D).
        captions: theirs.

    Returns:
        From -1 to 1, the mean where there are several real pictures; None where there is none.
    """
    ours, theirs = functional.normalize(generated, dim=1), functional.normalize(real, dim=1)
    found: list[float | None] = []
    for row, prompt in enumerate(prompts):
        same = [number for number, caption in enumerate(captions) if caption == prompt]
        found.append(float((theirs[same] @ ours[row]).mean()) if same else None)
    return found


def drift_of(adapted: Tensor, base: Tensor) -> float:
    """How far features of pictures moved: 1 minus the mean cosine of pairs, from 0 to 2.

    Args:
        adapted: features of pictures drawn with an adapter, shape (M, D).
        base: of the same without it.
    """
    return max(0.0, 1 - float(functional.cosine_similarity(adapted, base).mean()))


def draw_both(
    pipe: Any, settings: EvaluationSettings, size: tuple[int, int], output: Path | None, progress: Progress
) -> tuple[list[Image.Image], list[Image.Image]] | None:
    """Draw the drift prompts with the adapters as they are set and without them, from the same noise.

    Args:
        pipe: the pipeline; left as it was.
        settings: whose `drift_prompts` are drawn.
        size: width and height in pixels.
        output: gets `drift.png`, both rows; nothing is written when None.
        progress: told (what, done, of how many).

    Returns:
        Pictures with, and without; None where the pipeline has no adapter that could be turned off.
    """
    parts = [part for part in pipe.components.values() if isinstance(part, nn.Module)]
    prompts = settings.drift_prompts or ()
    if not any(map(has_adapter, parts)):
        return None
    with_adapter = draw(pipe, prompts, settings, size, progress, "drift pictures with the adapter")
    with ExitStack() as stack:
        for part in parts:
            stack.enter_context(adapter_off(part))
        without = draw(pipe, prompts, settings, size, progress, "drift pictures without it")
    if output is not None:
        rows = {"without": without[:_GRID_PROMPTS], "with": with_adapter[:_GRID_PROMPTS]}
        try:
            output.mkdir(parents=True, exist_ok=True)
            prompt_grid(rows, prompts[:_GRID_PROMPTS]).save(output / "drift.png")
        except OSError as error:
            raise FeraError(f"cannot write pictures to {output}: {error.strerror or error}") from error
    return with_adapter, without
