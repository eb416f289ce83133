"""What a case says."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DiffusionPipeline
from pytest import MonkeyPatch


@dataclass(frozen=True)
class Case:
    """One pipeline that fera trains, tiny, with its text encoders.

    Args:
        name: of the case, for the test's id.
        pipeline: makes it, with random weights; its denoiser's output must depend on all inputs.
        call: arguments of a call of the pipeline beside the prompt, the sizes and those of its family.
        height: of pictures in pixels.
        width: as `height`, unlike it.
        sources: widths and heights of the source pictures that a prompt is given; none for text to image.
        is_filled: whether a mask says what is painted.
        frames: of clips, of a base of videos; 0 of one of pictures.
        given: how many of a clip's frames a base is given: the first one, or the first and the last.
        variant: whether another case is of the same pipeline, or is given frames by the same functions: its run then
            stands for both in the fast tests.
        seconds: of sounds, of a base of sound; 0 of the others.
        patch: what a test makes smaller in diffusers, and alike in fera.
        repair: given the folder of the saved pipeline, makes it what its releases are where diffusers does not.
    """

    name: str
    pipeline: Callable[[], DiffusionPipeline]
    call: dict[str, Any] = field(default_factory=dict)
    height: int = 16
    width: int = 24
    sources: tuple[tuple[int, int], ...] = ()
    is_filled: bool = False
    frames: int = 0
    given: int = 0
    variant: bool = False
    seconds: float = 0
    patch: Callable[[MonkeyPatch], None] = lambda monkeypatch: None
    repair: Callable[[Path], None] = lambda folder: None
