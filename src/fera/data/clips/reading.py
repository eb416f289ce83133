"""Which reader a clip needs, and its frames."""

import hashlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from PIL import Image

from fera.data.clips import animated, folder, video
from fera.data.clips.clip import Clip, Frames, Part, at_rate
from fera.data.picture_formats import VIDEO_SUFFIXES
from fera.support.files import file_digest

# Of files that may be clips.
CLIP_SUFFIXES = VIDEO_SUFFIXES | animated.SUFFIXES


def look_at(path: Path) -> tuple[Clip, str] | None:
    """Look at a clip, without decoding all of a video.

    Args:
        path: a video, a picture, or a folder of frames.

    Returns:
        What it is, and the SHA-256 of what it holds; None of a still picture.

    Raises:
        ValueError: it cannot be used; the message says why, without the path.
        FileNotFoundError: there is no such file.
    """
    if path.is_dir():
        clip = folder.look(path)
        return clip, hashlib.sha256("\n".join(folder.digest(path)).encode()).hexdigest()
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return video.look(path), file_digest(path)
    if path.suffix.lower() in animated.SUFFIXES and (animation := animated.look(path)) is not None:
        return animation, file_digest(path)
    return None


def frames_of(path: Path, clip: Clip, part: Part) -> Iterator[Image.Image]:
    """Decode frames of a clip one after the other: at no time are there several.

    Args:
        path: the clip.
        clip: what `look_at` said of it.
        part: which frames.

    Yields:
        `part.frames` pictures, RGB, upright.

    Raises:
        ValueError: it cannot be read, or has fewer frames than it had; the message says so, without the path.
    """
    frames = _frames(path)
    every = clip.takes_every_frame(part.frame_rate)
    pictures = (picture for _, picture in frames) if every else at_rate(frames, part.frame_rate)
    count = 0
    for picture in islice(pictures, part.start, part.start + part.frames):
        yield picture()
        count += 1
    if count < part.frames:
        raise ValueError(f"breaks off: it has {part.start + count} frames that can be decoded, of {clip.frames}")


def end_frame(path: Path, *, last: bool) -> Image.Image | None:
    """The first or the last frame of a clip, RGB, upright; None of a still picture.

    Raises:
        ValueError: as `look_at`.
        FileNotFoundError: likewise.
    """
    if look_at(path) is None:
        return None
    found: Image.Image | None = None
    for _, picture in _frames(path):
        found = picture()
        if not last:
            break
    return found


def preview(path: Path, most: int) -> list[Image.Image]:
    """Some frames of a clip, from the first to the last, evenly spread; none of a still picture.

    Args:
        path: a video, a picture, or a folder of frames.
        most: how many at most, at least 2.

    Raises:
        ValueError: as `look_at`.
        FileNotFoundError: likewise.
    """
    if (found := look_at(path)) is None:
        return []
    last = found[0].frames - 1
    wanted = {number * last // (most - 1) for number in range(most)}
    return [picture() for number, (_, picture) in enumerate(_frames(path)) if number in wanted]


def _frames(path: Path) -> Frames:
    if path.is_dir():
        return folder.frames(path)
    return video.frames(path) if path.suffix.lower() in VIDEO_SUFFIXES else animated.frames(path)
