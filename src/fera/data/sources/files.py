"""Files of a data folder, which may come from a stranger: what may be opened, and how much of it is read."""

import os
import re
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath, PureWindowsPath

from fera.config.data import Media
from fera.data.picture_formats import IMAGE_SUFFIXES, SOUND_SUFFIXES, UNREAD_SUFFIXES, VIDEO_SUFFIXES
from fera.errors import FeraError

CAPTION_SUFFIXES = (".txt", ".caption")
METADATA_NAMES = ("metadata.jsonl", "metadata.csv")

_CAPTION_BYTES = 2**20
_METADATA_BYTES = 2**28
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def is_image(path: Path) -> bool:
    """Whether a path is a file that is called like a picture, and not hidden."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".") and path.is_file()


def images_in(folder: Path) -> list[Path]:
    """Pictures that lie in a folder itself, by name."""
    return [folder / entry.name for entry in entries_in(folder) if _is_called(entry, IMAGE_SUFFIXES)]


def is_video(path: Path) -> bool:
    """Whether a path is a file that is called like a video, and not hidden."""
    return path.suffix.lower() in VIDEO_SUFFIXES and not path.name.startswith(".") and path.is_file()


def media_in(folder: Path, reads: Media) -> list[Path]:
    """What lies in a folder itself of what is read, by name: of clips, pictures, videos and folders of frames."""
    if reads == "pictures":
        return images_in(folder)
    wanted = SOUND_SUFFIXES if reads == "sounds" else IMAGE_SUFFIXES | VIDEO_SUFFIXES
    return [
        folder / entry.name
        for entry in entries_in(folder)
        if _is_called(entry, wanted) or reads == "clips" and is_folder(entry) and _has_frames(folder / entry.name)
    ]


def media_below(folder: Path, reads: Media) -> Iterator[Path]:
    """As `images_below`, of what is read: of clips, pictures and videos."""
    wanted = {"pictures": IMAGE_SUFFIXES, "clips": IMAGE_SUFFIXES | VIDEO_SUFFIXES, "sounds": SOUND_SUFFIXES}
    yield from _below(folder, wanted[reads])


def videos_below(folder: Path) -> list[Path]:
    """Videos in a folder and in the folders below it; hidden and linked ones are passed over."""
    return list(_below(folder, VIDEO_SUFFIXES))


def sounds_below(folder: Path) -> list[Path]:
    """Sounds in a folder and in the folders below it; hidden and linked ones are passed over."""
    return list(_below(folder, SOUND_SUFFIXES))


def _has_frames(path: Path) -> bool:
    return path.is_dir() and not path.name.startswith(".") and any(map(is_image, path.iterdir()))


def images_below(folder: Path) -> Iterator[Path]:
    """Pictures in a folder and in the folders below it; hidden folders and linked ones are passed over."""
    yield from _below(folder, IMAGE_SUFFIXES)


def unread_below(folder: Path) -> list[Path]:
    """Files in a folder and in the folders below it that are called like pictures of formats that are not read."""
    return list(_below(folder, UNREAD_SUFFIXES))


def entries_in(folder: Path) -> list[os.DirEntry[str]]:
    """What lies in a folder, by name. Most file systems tell what is a file along with the names."""
    with os.scandir(folder) as listing:
        return sorted(listing, key=lambda entry: os.path.normcase(entry.name))


def is_file(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:  # links in a circle
        return False


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _below(folder: Path, suffixes: Set[str]) -> Iterator[Path]:
    """Files called like this in a folder and in the folders below it."""
    for entry in entries_in(folder):
        if _is_called(entry, suffixes):
            yield folder / entry.name
        elif not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
            yield from _below(folder / entry.name, suffixes)


def _is_called(entry: os.DirEntry[str], suffixes: Set[str]) -> bool:
    """Whether it is a file with one of some endings, and not hidden."""
    if entry.name.startswith(".") or os.path.splitext(entry.name)[1].lower() not in suffixes:
        return False
    return is_file(entry)


def check_inside(path: Path, folder: Path, *, follow_symlinks: bool) -> Path:
    """A file of a data folder, if it may be opened.

    Args:
        path: the file, found in the folder or named by its metadata.
        folder: the data folder, itself a link or not.
        follow_symlinks: allow links that lead out of the folder.

    Returns:
        `path`.

    Raises:
        FeraError: its name would disturb a terminal, or it is a link that leads out of the folder.
    """
    if _CONTROL.search(path.name):
        raise FeraError(f"a file in {folder} has control characters in its name, {path.name!r}; rename it")
    try:
        if path.parent == folder and not path.is_symlink():
            return path  # resolving is slow, and most files are these
        leaves = not follow_symlinks and not path.resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # links in a circle, a name that is too long
        raise FeraError(f"{path} cannot be followed: {error}") from error
    if leaves:
        raise FeraError(
            f"{path} is a link to {path.resolve()}, outside of the data folder {folder}. Copy the file, or set "
            "data.follow_symlinks if you trust this folder"
        )
    return path


def is_named_safely(name: str) -> bool:
    """Whether a name can be shown: it has no control characters."""
    return _CONTROL.search(name) is None


def named_file(name: str, folder: Path, where: str) -> Path:
    """The file that a row of metadata names.

    Args:
        name: relative to the folder, with / between folders.
        folder: the data folder.
        where: the row, for messages.

    Raises:
        FeraError: the name is absolute, leads out of the folder by `..`, or is no name.
    """
    parts = PurePosixPath(name).parts
    # A drive or a backslash path would be absolute on another system.
    is_absolute = name.startswith(("/", "\\")) or bool(PureWindowsPath(name).drive)
    if is_absolute or ".." in parts or ".." in PureWindowsPath(name).parts:
        raise FeraError(f"{where} names {name!r}, which leads out of the data folder; use paths inside it")
    if not parts or _CONTROL.search(name):
        raise FeraError(f"{where} names {name!r}, which is no file name")
    return folder.joinpath(*parts)


def read_text(path: Path, what: str) -> str:
    """Text of a caption or metadata file.

    Raises:
        FeraError: it is too large, cannot be read, or is not UTF-8.
    """
    limit = _METADATA_BYTES if path.name in METADATA_NAMES else _CAPTION_BYTES
    try:
        size = path.stat().st_size
        if size > limit:
            raise FeraError(f"{what} {path} has {size:,} bytes, more than {limit:,}; is it what it should be?")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise FeraError(f"{what} {path} cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise FeraError(f"{what} {path} is not UTF-8 text") from None
