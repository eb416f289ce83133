"""Folders that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` of the `datasets` package write."""

import json
import re
from pathlib import Path
from typing import Any

from fera.data.sources.files import check_inside, named_file, read_text
from fera.errors import FeraError

_STATE, _DICT = "state.json", "dataset_dict.json"
_SPLIT = re.compile(r"\w+(\.\w+)*")


def saved_splits(folder: Path, *, follow_symlinks: bool) -> dict[str, list[str]]:
    """Names of splits to their Arrow files, in the order of the rows.

    Args:
        folder: any folder.
        follow_symlinks: allow links that lead out of it.

    Returns:
        A dataset without splits is one of the name "train"; empty where the folder is no saved dataset.

    Raises:
        FeraError: it is one, and its list of files cannot be used.
    """
    if (folder / _DICT).is_file():
        names = _read(folder / _DICT, folder, follow_symlinks).get("splits")
        if not isinstance(names, list) or not all(isinstance(name, str) and _SPLIT.fullmatch(name) for name in names):
            raise FeraError(f"{folder / _DICT} names no splits; save the dataset again")
        return {name: _files(folder / name, folder, follow_symlinks) for name in names}
    if (folder / _STATE).is_file() and (folder / "dataset_info.json").is_file():
        return {"train": _files(folder, folder, follow_symlinks)}
    return {}


def _files(inner: Path, folder: Path, follow_symlinks: bool) -> list[str]:
    where = inner / _STATE
    listed = _read(where, folder, follow_symlinks).get("_data_files")
    names = [file.get("filename") if isinstance(file, dict) else None for file in listed or []]
    if not names or not all(isinstance(name, str) for name in names):
        raise FeraError(f"{where} names no files; save the dataset again")
    paths = [named_file(str(name), inner, str(where)) for name in names]
    return [str(check_inside(path, folder, follow_symlinks=follow_symlinks)) for path in paths]


def _read(path: Path, folder: Path, follow_symlinks: bool) -> dict[str, Any]:
    check_inside(path, folder, follow_symlinks=follow_symlinks)
    try:
        held = json.loads(read_text(path, "file"))
    except (ValueError, RecursionError) as error:
        if isinstance(error, FeraError):
            raise
        raise FeraError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(held, dict):
        raise FeraError(f"{path} must hold a JSON object")
    return held
