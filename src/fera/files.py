"""Writing files whole."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path


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
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors keeps its files from other users
        os.replace(temporary, path)
    finally:
        with suppress(OSError):  # where there is no folder there is nothing to remove
            temporary.unlink(missing_ok=True)
