"""Pictures that come as bytes, out of datasets and archives: kept as files that are named by what they hold."""

import hashlib
from pathlib import Path

from fera.support.files import replace_file


def stored(content: bytes, store: Path) -> Path:
    """The file with this content, written where it is not there yet.

    Args:
        content: an encoded picture.
        store: the folder of such files.

    Raises:
        OSError: it cannot be written.
    """
    name = hashlib.sha256(content).hexdigest()
    path = stored_path(name, store)
    if not path.is_file() or path.stat().st_size != len(content):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda file: file.write_bytes(content))
    return path


def stored_path(name: str, store: Path) -> Path:
    """Where the file of this name, a hash of its content, is kept."""
    return store / name[:2] / name
