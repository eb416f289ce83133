"""Writing files whole, and telling their content apart."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from fera.errors import FeraError

# What fsync answers for a folder, or for a file open for reading, where the system has no such thing.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF)


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file whole or not at all: a crash leaves the old one, another process sees one of the two.

    Args:
        path: the file, in a folder that exists.
        write: writes the file that it is given, which takes the place of `path` afterwards.

    Raises:
        OSError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with os_errors(path):
            temporary.touch()
            mode = temporary.stat().st_mode
            write(temporary)
            temporary.chmod(mode)  # safetensors keeps its files from other users
            sync(temporary)
            os.replace(temporary, path)
    finally:
        with suppress(OSError):  # where there is no folder there is nothing to remove
            temporary.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """As `replace_file`, for text.

    Raises:
        OSError: it cannot be written.
    """
    replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))


def claim_folder(folder: Path, held: Sequence[str], *, overwrite: bool) -> None:
    """Make the folder that a command writes to, or refuse where it would replace something unasked.

    Args:
        folder: need not exist.
        held: what the folder already holds of what is to be written, in words.
        overwrite: replace it.

    Raises:
        FeraError: it would be replaced and `overwrite` is off, or the folder cannot be made.
    """
    if held and not overwrite:
        raise FeraError(
            f"{folder} already holds {', '.join(held[:3])}{' …' if len(held) > 3 else ''}; "
            "give another `output`, or `overwrite` to replace them"
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FeraError(f"cannot write to {folder}: {error.strerror or error}") from error


def file_digest(path: Path) -> str:
    """SHA-256 of a file, read piece by piece, in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Force a file or folder to disk, where the system can.

    Raises:
        OSError: the disk refuses it: some file systems notice only here that they are full.
    """
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows opens no folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        os.close(handle)


@contextmanager
def os_errors(path: Path) -> Iterator[None]:
    """Raise what safetensors and torch make of a failed write as the OSError that it was.

    Args:
        path: named by errors that name no file.
    """
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        number = _errno_of(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _errno_of(error: BaseException | None) -> int | None:
    """The system's number of an error, from what led to it or from its text; None where it is of another kind."""
    while error is not None:
        if isinstance(error, OSError):
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # Rust's words
            return int(found[1])
        error = error.__context__
    return None
