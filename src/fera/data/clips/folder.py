"""Folders of frames: pictures of one size, in the order of their names. Numbers in them count as numbers."""

import re
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fera.data.clips.clip import Clip, Frames
from fera.data.images import load_image
from fera.data.sources.files import images_in
from fera.support.files import file_digest


def look(path: Path) -> Clip:
    """Look at the first and the last frame of a folder.

    Raises:
        ValueError: it has no pictures, or they cannot be read, or differ in size. The message does not name it.
    """
    pictures = _pictures(path)
    if not pictures:
        raise ValueError("has no frames: no pictures lie in this folder")
    sizes = {picture: _load(picture).size for picture in (pictures[0], pictures[-1])}
    if len(set(sizes.values())) > 1:
        raise ValueError(_differ(pictures[0], sizes[pictures[0]], pictures[-1], sizes[pictures[-1]]))
    return Clip(len(pictures), sizes[pictures[0]])


def frames(path: Path) -> Frames:
    """Frames of a folder. Their times count frames: a folder has the rate that is asked for.

    Raises:
        ValueError: as `look`.
    """
    size: tuple[int, int] | None = None
    pictures = _pictures(path)
    for number, picture in enumerate(pictures):
        image = _load(picture)
        size = image.size if size is None else size
        if image.size != size:
            raise ValueError(_differ(pictures[0], size, picture, image.size))
        yield float(number), _held(image)


def digest(path: Path) -> list[str]:
    """SHA-256 of each frame's file, in their order."""
    return [file_digest(picture) for picture in _pictures(path)]


def _pictures(path: Path) -> list[Path]:
    return sorted(images_in(path), key=lambda picture: _by_number(picture.name))


def _by_number(name: str) -> tuple[list[tuple[int, str]], str]:
    """frame2 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdecimal() else (0, part) for part in parts], name


def _load(picture: Path) -> Image.Image:
    try:
        return load_image(picture)
    except ValueError as error:
        raise ValueError(f"has a frame, {picture.name}, that {error}") from None


def _differ(first: Path, size: tuple[int, int], other: Path, other_size: tuple[int, int]) -> str:
    return (
        f"has frames of different sizes: {first.name} {size[0]} x {size[1]}, "
        f"{other.name} {other_size[0]} x {other_size[1]}"
    )


def _held(image: Image.Image) -> Callable[[], Image.Image]:
    return lambda: image
