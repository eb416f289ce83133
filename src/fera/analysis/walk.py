"""Drawing prompts while energies and gates are recorded."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from fera.analysis.energies import Energies, StepEnergies, join_batches, record_energies
from fera.analysis.gates import GatePaths, gate_paths, one_a_picture
from fera.errors import FeraError
from fera.generation import generate
from fera.method.bands import FrequencyBands
from fera.method.routing import Routing
from fera.pipelines.adapters import trace


@dataclass(frozen=True)
class Sampling:
    """How prompts are drawn.

    Args:
        prompts: one a picture, at least one.
        seed: the seed of the first picture, counting up from there.
        steps: denoising steps.
        guidance_scale: strength of guidance.
        negative_prompt: the negative prompt of all pictures.
        height: in pixels; the base's own when left out.
        width: likewise.
        batch_size: pictures at a time.
    """

    prompts: Sequence[str]
    seed: int = 0
    steps: int = 24
    guidance_scale: float = 2.0
    negative_prompt: str = ""
    height: int | None = None
    width: int | None = None
    batch_size: int = 8

    def first(self, count: int) -> "Sampling":
        """The same of the first prompts only."""
        return replace(self, prompts=list(self.prompts[:count]))


@dataclass(frozen=True)
class Walk:
    """What was recorded while prompts were drawn.

    Args:
        images: one a prompt.
        energies: the energies of "latent" (z_t), "clean" (the predicted clean latent) and "prediction" at each step.
        gates: one entry an adapter and denoiser; empty where nothing was routed.
    """

    images: list[Image.Image]
    energies: Energies
    gates: list[GatePaths]


Progress = Callable[[int], None]


def draw(pipe: Any, sampling: Sampling, progress: Progress | None = None) -> list[Image.Image]:
    """Draw the prompts of a sampling.

    Args:
        pipe: a text-to-image pipeline, with or without adapters.
        sampling: what and how.
        progress: told how many (picture, step) pairs are done.

    Raises:
        FeraError: the pipeline cannot draw this.
    """
    images: list[Image.Image] = []
    for batch in _batches(sampling):
        images += _draw_batch(pipe, sampling, batch, progress)
    return images


def walk(
    pipe: Any, sampling: Sampling, bands: FrequencyBands, *, model: str, traced: bool, progress: Progress | None = None
) -> Walk:
    """Draw prompts and record energies and gates; the pictures are those of `draw`.

    Args:
        pipe: a text-to-image pipeline, with or without adapters.
        sampling: what and how.
        bands: what to measure energies with.
        model: what to call it: "base", or the adapter's name.
        traced: whether an adapter is active, whose gates are to be recorded.
        progress: told how many (picture, step) pairs are done.

    Raises:
        FeraError: the pipeline cannot draw this, or `record_denoising` cannot watch it.
    """
    images: list[Image.Image] = []
    energies: list[list[StepEnergies]] = []
    routings: list[list[Routing]] = []
    for batch in _batches(sampling):
        with ExitStack() as stack:
            steps = stack.enter_context(record_energies(pipe, bands))
            seen = stack.enter_context(trace(pipe)) if traced else []
            images += _draw_batch(pipe, sampling, batch, progress)
        energies.append(steps)
        routings.append(one_a_picture(seen, len(batch)))
    return Walk(images, join_batches(model, energies), gate_paths(routings))


def _batches(sampling: Sampling) -> list[range]:
    count, size = len(sampling.prompts), sampling.batch_size
    if count < 1 or size < 1:
        raise FeraError(f"an analysis needs at least one prompt and a batch size of at least 1; got {count} and {size}")
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def _draw_batch(pipe: Any, sampling: Sampling, batch: range, progress: Progress | None) -> list[Image.Image]:
    return generate(
        pipe,
        [sampling.prompts[index] for index in batch],
        negative_prompt=sampling.negative_prompt,
        seed=sampling.seed + batch.start,
        num_inference_steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        height=sampling.height,
        width=sampling.width,
        batch_size=len(batch),
        progress=None if progress is None else lambda done, total: progress(batch.start * sampling.steps + done),
    )
