"""Which frames of each clip are trained on, once the base is known."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fera.config import DataConfig
from fera.data.clips.clip import Part
from fera.data.example import Example, some_of
from fera.errors import FeraError

if TYPE_CHECKING:  # a check without a base does without PyTorch
    from fera.models.video import Video


def clip_settings(config: DataConfig, video: "Video | None", pipeline: str) -> tuple[list[int], float]:
    """Frame counts, from the smallest on, and the frame rate.

    Args:
        config: the section of the data; it asks for clips.
        video: what the base is made for; None of a base of pictures.
        pipeline: the class of the base's pipeline, for messages.

    Raises:
        FeraError: the base draws no videos, or none of so many frames.
    """
    if video is None:
        raise FeraError(
            f"data.num_frames is set, but {pipeline} draws pictures, no videos: leave data.num_frames out, or take "
            "a base of videos"
        )
    counts = sorted(config.num_frames)
    for count in counts:
        if (count - 1) % video.stride:
            near = count - (count - 1) % video.stride
            raise FeraError(
                f"data.num_frames is {count}, but this base needs 1 more than a multiple of {video.stride}: {near} or "
                f"{near + video.stride}"
            )
        if video.most is not None and count > video.most:
            raise FeraError(
                f"data.num_frames is {count}, but this base draws at most {video.most} frames: set it lower"
            )
    return counts, config.frame_rate or video.frame_rate


def fit_clips(
    examples: Sequence[Example], counts: Sequence[int], rate: float, *, skip_bad: bool
) -> tuple[list[Example], list[str]]:
    """Settle which frames of each clip are trained on: the first ones, as many as the largest count it has frames for.

    Args:
        examples: as `check_images` gives them; pictures among them stay as they are.
        counts: frame counts, from the smallest on.
        rate: frames a second.
        skip_bad: leave clips that do not fit out instead of stopping.

    Returns:
        The examples with `part` filled in, and a line about each one left out.

    Raises:
        FeraError: a clip does not fit and `skip_bad` is off, or none fits.
    """
    fitted, bad = sift_clips(examples, counts, rate)
    if bad and not skip_bad:
        raise FeraError(
            f"{len(bad)} of {len(examples)} clips do not fit: {some_of(bad)}. "
            "Convert or remove them; a training run leaves them out with data.skip_bad = true"
        )
    if not fitted and examples:
        raise FeraError(f"none of {len(examples)} clips fits: {some_of(bad)}")
    return fitted, bad


def sift_clips(examples: Sequence[Example], counts: Sequence[int], rate: float) -> tuple[list[Example], list[str]]:
    """As `fit_clips` with `skip_bad`, but all may be bad."""
    fitted: list[Example] = []
    bad: list[str] = []
    for example in examples:
        try:
            fitted.append(_fit(example, counts, rate))
        except ValueError as error:
            bad.append(f"{example.origin} {error}")
    return fitted, bad


def _fit(example: Example, counts: Sequence[int], rate: float) -> Example:
    if example.clip is None:
        return example
    there = example.clip.frames_at(rate)
    fitting = [count for count in counts if count <= there]
    if not fitting:
        raise ValueError(
            f"has {there} frames at {rate:g} a second, fewer than {counts[0]}; set data.num_frames lower, or "
            "add a lower number to it"
        )
    return replace(example, part=Part(0, fitting[-1], rate))
