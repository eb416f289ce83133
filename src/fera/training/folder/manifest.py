"""What a checkpoint holds, so that damage is noticed: `manifest.json` with the size and hash of each file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fera.support.files import file_digest

MANIFEST = "manifest.json"


def write_manifest(folder: Path, about: Mapping[str, Any]) -> None:
    """Describe all files of a folder in its manifest.

    Args:
        folder: complete but for the manifest.
        about: JSON-like; kept beside the list of files.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): _described(path) for path in paths}
    (folder / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=2) + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """A folder's manifest.

    Raises:
        OSError: it is not there, or cannot be read.
        ValueError: it is no manifest.
    """
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        raise ValueError("it lists no files")
    return manifest


def damage_of(folder: Path) -> list[str]:
    """What is wrong with a folder that has a manifest: a line each file that is missing or not as it was written.

    Every file is read whole, a second or so for each gigabyte.
    """
    try:
        files = read_manifest(folder)["files"]
    except FileNotFoundError:
        return [f"{MANIFEST} is missing"]
    except (OSError, ValueError, RecursionError) as error:
        return [f"{MANIFEST} cannot be read ({error})"]
    return [line for name, expected in files.items() if (line := _damage_of(folder / name, name, expected))]


def _damage_of(path: Path, name: str, expected: Any) -> str | None:
    try:
        size = path.stat().st_size
        if size != expected["bytes"]:
            return f"{name} has {size:,} bytes instead of {expected['bytes']:,}"
        if file_digest(path) != expected["sha256"]:
            return f"{name} does not hold what was written (its SHA-256 differs)"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except (KeyError, TypeError, ValueError):
        return f"{MANIFEST} does not describe {name}"
    return None


def _described(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": file_digest(path)}
