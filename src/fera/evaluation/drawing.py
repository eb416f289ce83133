"""The pictures that an evaluation looks at: which prompts, from which noise, in which files."""

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fera.errors import FeraError
from fera.evaluation.results import Picture
from fera.evaluation.settings import EvaluationSettings
from fera.generation import file_stem, generate, prompt_grid, save_image

# A grid of more prompts is no overview any more.
_GRID_PROMPTS = 64
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Drawn:
    """Generated pictures.

    Args:
        images: RGB, all of one size.
        pictures: a row about each, in the same order: all prompts, then all prompts again, …
        seconds_per_step: wall time of a denoising step of one picture.
        seconds_per_image: wall time of a picture.
    """

    images: list[Image.Image]
    pictures: list[Picture]
    seconds_per_step: float
    seconds_per_image: float


def prompts_of(captions: Sequence[str], settings: EvaluationSettings) -> list[str]:
    """What to draw: the prompts of the settings, or distinct captions of the folder, as many as are wanted.

    Which captions are taken does not depend on their order, and fewer of them are a part of more of them.

    Raises:
        FeraError: there is no caption to draw.
    """
    if settings.prompts is not None:
        return list(settings.prompts)
    distinct = list(dict.fromkeys(caption for caption in captions if caption))
    if not distinct:
        raise FeraError("no picture of the folder has a caption to draw; give prompts, or draw none")
    ranked = sorted(distinct, key=lambda caption: hashlib.sha256(caption.encode()).digest())
    chosen = set(ranked[: settings.max_prompts])
    return [caption for caption in distinct if caption in chosen]


def draw_pictures(
    pipe: Any,
    prompts: Sequence[str],
    settings: EvaluationSettings,
    size: tuple[int, int],
    output: Path | None,
    progress: Progress,
) -> Drawn:
    """Draw each prompt as often as the settings say.

    Picture j of prompt p starts from noise of its own, of seed `settings.seed + j * P + p` for P prompts: it depends
    neither on the batch size nor on how many pictures there are of each prompt.

    Args:
        pipe: adapters as they are set.
        prompts: at least one.
        settings: the settings of the evaluation.
        size: width and height in pixels.
        output: gets a file a picture, and `grid.png`; nothing is written when None.
        progress: told (what, done, of how many).
    """
    wanted = list(prompts) * settings.images_per_prompt
    clock = _Clock()
    began = time.perf_counter()
    images = draw(pipe, wanted, settings, size, progress, "pictures drawn", clock)
    seconds = (time.perf_counter() - began) / len(wanted)
    pictures = []
    for row, prompt in enumerate(wanted):
        repetition, place = divmod(row, len(prompts))
        suffix = f"-{repetition}" if settings.images_per_prompt > 1 else ""
        file = None if output is None else f"{file_stem(place, prompt)}{suffix}.png"
        pictures.append(Picture(prompt, repetition, settings.seed + row, file))
    if output is not None:
        _write(images, pictures, prompts, settings, output)
    return Drawn(images, pictures, clock.per_step or seconds / settings.num_inference_steps, seconds)


def draw(
    pipe: Any,
    prompts: Sequence[str],
    settings: EvaluationSettings,
    size: tuple[int, int],
    progress: Progress,
    what: str,
    clock: "_Clock | None" = None,
) -> list[Image.Image]:
    """Draw each prompt once, number i from the noise of seed `settings.seed + i`.

    Args:
        pipe: adapters as they are set.
        prompts: at least one.
        settings: steps, guidance and batch size.
        size: width and height in pixels.
        progress: told (what, done, of how many).
        what: what is drawn, for `progress`.
        clock: takes the time of denoising steps.
    """
    clock = clock or _Clock()
    images: list[Image.Image] = []
    for start in range(0, len(prompts), settings.batch_size):
        clock.start()
        images += generate(
            pipe,
            prompts[start : start + settings.batch_size],
            seed=settings.seed + start,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            width=size[0],
            height=size[1],
            batch_size=settings.batch_size,
            progress=clock.tick,
        )
        progress(what, len(images), len(prompts))
    return images


def _write(
    images: Sequence[Image.Image],
    pictures: Sequence[Picture],
    prompts: Sequence[str],
    settings: EvaluationSettings,
    output: Path,
) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for image, picture in zip(images, pictures, strict=True):
            details = {"prompt": picture.prompt, "seed": picture.seed, "guidance_scale": settings.guidance_scale}
            save_image(image, output / str(picture.file), details | {"steps": settings.num_inference_steps})
        count = len(prompts)
        rows = {
            str(repetition): images[repetition * count : (repetition + 1) * count][:_GRID_PROMPTS]
            for repetition in range(settings.images_per_prompt)
        }
        prompt_grid(rows, prompts[:_GRID_PROMPTS]).save(output / "grid.png")
    except OSError as error:
        raise FeraError(f"cannot write pictures to {output}: {error.strerror or error}") from error


class _Clock:
    """Time of a denoising step, without what comes before the first and after the last."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._steps = 0
        self._last: tuple[float, int] | None = None

    @property
    def per_step(self) -> float | None:
        """Seconds a step of one picture; None where no step was seen to begin and end."""
        return self._seconds / self._steps if self._steps else None

    def start(self) -> None:
        """Another batch begins."""
        self._last = None

    def tick(self, done: int, total: int) -> None:
        """Some (picture, step) pairs are done."""
        now = time.perf_counter()
        if self._last is not None:
            self._seconds += now - self._last[0]
            self._steps += done - self._last[1]
        self._last = (now, done)
