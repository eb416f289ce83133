"""Animated pictures (GIF, WebP, APNG, AVIF), by Pillow."""

from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fera.data.clips.clip import Clip, Frames
from fera.data.images import load_frames

SUFFIXES = frozenset({".gif", ".webp", ".apng", ".avifs"})

# What viewers take for a frame that states no time, or nearly none.
_DEFAULT_SECONDS = 0.1
_LEAST_SECONDS = 0.011


def look(path: Path) -> Clip | None:
    """Read a picture frame by frame; None where it has one.

    Raises:
        ValueError: it cannot be read, or a frame is damaged. The message does not name it.
    """
    count, last, size = 0, 0.0, (0, 0)
    for time, picture in frames(path):
        count, last, size = count + 1, time, picture().size
    return None if count == 1 else Clip(count, size, last, (count - 1) / last)


def frames(path: Path) -> Frames:
    """Frames of a picture, RGB, upright.

    Raises:
        ValueError: as `look`.
    """
    time = 0.0
    for seconds, image in load_frames(path):
        yield time, _held(image)
        time += seconds if seconds > _LEAST_SECONDS else _DEFAULT_SECONDS


def _held(image: Image.Image) -> Callable[[], Image.Image]:
    return lambda: image
