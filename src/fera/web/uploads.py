"""Files that a browser sends: held to the limits of data folders, written whole or not at all."""

import os
import secrets
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

from fera.data.images import load_gray, load_image
from fera.data.picture_formats import IMAGE_SUFFIXES, SOUND_SUFFIXES
from fera.data.sounds.reading import look_at
from fera.data.sources.files import CAPTION_SUFFIXES
from fera.errors import FeraError
from fera.support.files import file_digest, sync

# A name has at most 255 bytes on most systems.
_LONGEST = 200
_CAPTION_BYTES = 2**20


def check_name(name: str) -> str:
    """A file's name as it may be written into a data folder.

    Raises:
        FeraError: it leads somewhere, is hidden, or is none of a picture, a sound or a caption.
    """
    if not name or name != os.path.basename(name) or "\\" in name or name.startswith(".") or not name.isprintable():
        raise FeraError(f"{name[:80]!r} is no name of a file that can be taken; rename it")
    if len(name.encode()) > _LONGEST:
        raise FeraError(f"the name {name[:40]}… is longer than {_LONGEST} bytes; shorten it")
    suffix = Path(name).suffix.lower()
    if suffix not in IMAGE_SUFFIXES and suffix not in CAPTION_SUFFIXES and suffix not in SOUND_SUFFIXES:
        raise FeraError(f"{name} is none of a picture, a sound or a caption; copy other files into the folder yourself")
    return name


async def receive(pieces: AsyncIterator[bytes], folder: Path, name: str) -> str:
    """Write what is sent into a folder, once all of it is there and is what it should be.

    Args:
        pieces: of the file.
        folder: the data folder.
        name: of the file, checked.

    Returns:
        What happened, in words.

    Raises:
        FeraError: it is no picture that can be read, or no text, or the folder has another file of that name.
        OSError: it cannot be written.
    """
    path = _temporary(folder, Path(name).suffix)
    try:
        with path.open("xb") as file:
            async for piece in pieces:
                file.write(piece)
        return settle(path, folder / name)
    finally:
        with suppress(OSError):
            path.unlink(missing_ok=True)


def settle(path: Path, target: Path) -> str:
    """Look at a file that was received, and give it its name; nothing that is there is replaced."""
    if target.suffix.lower() in CAPTION_SUFFIXES:
        _check_text(path, target.name)
    else:
        try:
            look_at(path) if path.suffix.lower() in SOUND_SUFFIXES else load_image(path)
        except ValueError as error:
            raise FeraError(f"{target.name} {error}; it was not taken") from error
    sync(path)
    try:
        _name(path, target)
    except FileExistsError:
        if file_digest(path) == file_digest(target):
            return f"{target.name} was there already"
        raise FeraError(
            f"{target.parent.name} has another {target.name}, which stays: rename yours and drop it again"
        ) from None
    return f"{target.name} is in"


def _name(path: Path, target: Path) -> None:
    """Give a file its name, unless something has it.

    Raises:
        FileExistsError: something has it.
    """
    try:
        os.link(path, target)  # unlike a renaming, it fails where something is
    except FileExistsError:
        raise
    except OSError:  # exFAT and some shares know no links
        target.touch(exist_ok=False)
        try:
            os.replace(path, target)
        except OSError:
            target.unlink(missing_ok=True)
            raise


def write_mask(content: bytes, path: Path, size: tuple[int, int]) -> None:
    """Write a mask that was painted.

    Args:
        content: a PNG.
        path: the mask's file, in a folder that is made if missing.
        size: width and height of its picture in pixels.

    Raises:
        FeraError: it is no picture, is black, or is of another shape than its picture.
        OSError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _temporary(path.parent, ".png")
    try:
        with part.open("xb") as file:
            file.write(content)
        try:
            mask = load_gray(part)
        except ValueError as error:
            raise FeraError(f"the mask {error}; it was not saved") from error
        if mask.getextrema() == (0, 0):
            raise FeraError("the mask is black: there would be nothing to learn from. Paint white where it counts")
        stretch = mask.width * size[1] / (mask.height * size[0])
        if not 0.98 <= stretch <= 1.02:
            raise FeraError("the mask is of another shape than its picture; reload the page and paint it again")
        mask.save(part, format="PNG")
        sync(part)
        part.replace(path)
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def _check_text(path: Path, name: str) -> None:
    if path.stat().st_size > _CAPTION_BYTES:
        raise FeraError(f"{name} has more than {_CAPTION_BYTES:,} bytes, too many for a caption; it was not taken")
    try:
        path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise FeraError(f"{name} is not UTF-8 text; it was not taken") from None


def _temporary(folder: Path, suffix: str) -> Path:
    """A hidden name that nobody has, which no data folder is trained with."""
    return folder / f".upload-{secrets.token_hex(8)}{suffix}"
