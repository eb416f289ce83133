"""kohya's parent folder: `10_sks dog/` holds pictures that an epoch sees ten times."""

import re
from pathlib import Path

from fera.config import DataConfig
from fera.data.example import Example
from fera.data.sources.files import entries_in, is_folder, media_in
from fera.data.sources.flat import caption_of
from fera.data.sources.sharing import Beside
from fera.errors import FeraError

_NAME = re.compile(r"(\d{1,9})_(.+)")
# A name is no reason to write a list of a billion entries.
_MOST_REPEATS = 10_000


def repeat_folders(folder: Path) -> list[tuple[Path, int, str]]:
    """Folders named `N_words`, each with its N and its words, by name.

    Raises:
        FeraError: N is 0 or beyond all use.
    """
    found = []
    for entry in entries_in(folder):
        match = _NAME.fullmatch(entry.name)
        if match and is_folder(entry):
            path = folder / entry.name
            repeats = int(match[1])
            if not 1 <= repeats <= _MOST_REPEATS:
                raise FeraError(f"folder {path} asks for {repeats} repeats; from 1 to {_MOST_REPEATS} make sense")
            found.append((path, repeats, match[2].strip()))
    return found


def read_repeats(folder: Path, config: DataConfig) -> list[Example]:
    """Pictures of all `N_words` folders; one without a caption file has the folder's words for a caption."""
    beside = Beside()
    return [
        Example(
            path,
            caption_of(path, beside, folder, config) or words,
            name=f"{inner.name}/{path.name}",
            repeats=repeats,
        )
        for inner, repeats, words in repeat_folders(folder)
        for path in media_in(inner, config.reads)
    ]
