"""Class pictures: what the base draws already, trained on beside the subject so that it is not forgotten.

As in DreamBooth (Ruiz et al., arXiv 2208.12242, section 3.2), prior preservation. Half of what a run sees are class
pictures; the loss on them has a weight of its own.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fera.config import TrainConfig
from fera.data.checking import check_images
from fera.data.class_pictures import class_settings, count_class_images
from fera.data.colours import describe_colours
from fera.data.example import Example
from fera.data.index import user_index
from fera.data.sources import find
from fera.errors import FeraError
from fera.pipelines.block_offload import move
from fera.support.files import replace_file
from fera.support.progress import Listener

_BATCH = 4


def prepare_class_images(
    pipe: Any, config: TrainConfig, resolution: int, device: torch.device, listener: Listener
) -> tuple[list[Example], list[str]]:
    """Find class pictures, and draw with the base what is missing of `num_class_images`.

    Args:
        pipe: the base, on the CPU and without an adapter.
        config: the configuration of the run.
        resolution: side of pictures to draw, in pixels.
        device: where to draw.
        listener: hears what is drawn.

    Returns:
        Class examples with their digests and weight, and a line about each picture left out; none and nothing where no
        `class_data_dir` is set.

    Raises:
        FeraError: the folder cannot be used or written, or it is the training folder.
    """
    folder = config.data.class_data_dir
    if folder is None:
        return [], []
    if config.data.train_data_dir is not None and folder.resolve() == config.data.train_data_dir.resolve():
        raise FeraError(f"data.class_data_dir is the training folder, {folder}; class pictures need one of their own")
    if numbers := _missing(config):
        listener.say(f"drawing {len(numbers)} class pictures into {folder}: {config.data.class_prompt}")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            _draw(pipe, config, folder, numbers, resolution, device, listener)
        except OSError as error:
            raise FeraError(f"cannot write to data.class_data_dir {folder}: {error.strerror or error}") from error
    settings = class_settings(config.data)
    found = find(folder, settings)
    examples, skipped = check_images(found.examples, skip_bad=settings.skip_bad, index=user_index())
    for note in [*found.notes, *describe_colours(examples)]:
        listener.say(f"{folder}: {note}")
    listener.say(f"{len(examples)} class pictures from {folder}, loss weight {config.data.prior_loss_weight:g}")
    return [replace(example, weight=config.data.prior_loss_weight) for example in examples], skipped


def draws_class_images(config: TrainConfig) -> bool:
    """Whether class pictures are missing that the base has to draw."""
    return config.data.class_data_dir is not None and bool(_missing(config))


def mixed(examples: Sequence[Example], class_examples: Sequence[Example]) -> list[Example]:
    """Both, in one list: the shorter one is repeated to the length of the longer one.

    Which of them an epoch sees is for `fera.training.step.order.Turns` to say, so that none is always seen more often.
    """
    if not class_examples:
        return list(examples)
    count = max(len(examples), len(class_examples))
    return [pictures[index % len(pictures)] for pictures in (examples, class_examples) for index in range(count)]


def _missing(config: TrainConfig) -> list[int]:
    """Numbers of the pictures to draw: those that have no file yet, as many as it takes."""
    folder, wanted = config.data.class_data_dir, config.data.num_class_images
    assert folder is not None
    free = [number for number in range(wanted) if not (folder / _file_name(number)).exists()]
    return free[: max(0, wanted - count_class_images(folder))]


def _file_name(number: int) -> str:
    return f"class-{number:05d}.png"


def _draw(
    pipe: Any,
    config: TrainConfig,
    folder: Path,
    numbers: Sequence[int],
    resolution: int,
    device: torch.device,
    listener: Listener,
) -> None:
    """Draw pictures, each from the seed of its number: it is the same one whenever it is drawn."""
    from fera.generation import generate, save_image

    prompt = str(config.data.class_prompt)
    settings = config.validation
    move(pipe, device)
    done = 0
    for first, count in _batches(numbers):
        images = generate(
            pipe,
            [prompt] * count,
            seed=config.seed + first,
            num_inference_steps=settings.num_inference_steps,
            guidance_scale=settings.guidance_scale,
            height=resolution,
            width=resolution,
            batch_size=count,
        )
        for number, image in enumerate(images, start=first):
            about = {"prompt": prompt, "seed": config.seed + number}
            # Whole or not at all: what an interruption leaves counts as drawn.
            replace_file(folder / _file_name(number), partial(save_image, image, metadata=about))
        done += count
        listener.advance("class pictures", done, len(numbers))
    move(pipe, "cpu")


def _batches(numbers: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Runs of consecutive numbers: the first of each, and how many."""
    start = 0
    for end in range(1, len(numbers) + 1):
        is_full = end - start == _BATCH
        if end == len(numbers) or is_full or numbers[end] != numbers[end - 1] + 1:
            yield numbers[start], end - start
            start = end
