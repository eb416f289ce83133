"""What lies in folders of data, as the page sees it: which there are, and their pictures with captions, read once."""

import os
import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from fera.config import DataConfig
from fera.data.editing import Captioned, CaptionFolder, read_folder
from fera.data.picture_formats import IMAGE_SUFFIXES, SOUND_SUFFIXES
from fera.data.sources.files import METADATA_NAMES
from fera.data.sources.flat import caption_of
from fera.data.sources.sharing import Beside
from fera.errors import FeraError
from fera.web.places import Places

# Folders in folders that are offered, and entries that are looked at for that.
_DEPTH = 3
_MOST_ENTRIES = 20_000
# Of a folder's entries, so many say whether it is one of pictures.
_FIRST = 200
_KEPT = 8
_SUFFIXES = (*IMAGE_SUFFIXES, *SOUND_SUFFIXES)
# Folders of pictures that are no data.
_OWN = ("drawings", "samples", "live")


class Looks:
    """Looks at folders, each read again once something in it came, went or was written whole."""

    def __init__(self) -> None:
        self._looks: dict[Path, tuple[object, CaptionFolder]] = {}
        self._mutex = threading.Lock()

    def at(self, folder: Path, *, fresh: bool = False) -> CaptionFolder:
        """What lies in a folder.

        Args:
            folder: without links.
            fresh: read it again, whatever it looks like from outside.

        Raises:
            FeraError: as `read_folder`.
        """
        stamp = _stamp(folder)
        with self._mutex:
            kept = self._looks.get(folder)
        if kept is not None and kept[0] == stamp and not fresh:
            return kept[1]
        held = read_folder(folder)
        with self._mutex:
            self._looks.pop(folder, None)
            self._looks[folder] = (stamp, held)
            while len(self._looks) > _KEPT:
                self._looks.pop(next(iter(self._looks)))
        return held

    def forget(self, folder: Path) -> None:
        """Read a folder again the next time."""
        with self._mutex:
            self._looks.pop(folder, None)

    def entry(self, folder: Path, name: str) -> Captioned:
        """A picture of a folder, with the caption that its file has now.

        Raises:
            FeraError: it is not there.
        """
        held = self.at(folder)
        for entry in held.entries:
            if entry.name == name:
                return captions_now(held, [entry])[0]
        raise FeraError(f"{name} is not in the folder any more; reload the page")


def captions_now(held: CaptionFolder, entries: Sequence[Captioned]) -> list[Captioned]:
    """Entries with the captions that their files have now: what is written in place leaves no trace in the folder."""
    if held.layout != "flat" or not entries:
        return list(entries)
    config = DataConfig(train_data_dir=held.folder)
    beside = Beside()
    return [replace(entry, caption=_caption_of(entry, beside, held.folder, config)) for entry in entries]


def _caption_of(entry: Captioned, beside: Beside, folder: Path, config: DataConfig) -> str:
    try:
        return caption_of(entry.image, beside, folder, config)
    except FeraError:
        return entry.caption


def find_folders(places: Places) -> list[str]:
    """Names of folders with pictures or sounds in them, below those of the page."""
    found: list[str] = []
    left = _MOST_ENTRIES
    folders = [(path, 0) for path in (places.root, *places.also)]
    while folders and left > 0:
        folder, depth = folders.pop(0)
        try:
            with os.scandir(folder) as entries:
                names = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name[0] != "."]
        except OSError:
            continue  # gone meanwhile, or another user's
        left -= len(names)
        files = [name.lower() for name, is_folder in names[:_FIRST] if not is_folder]
        if depth and any(name.endswith(_SUFFIXES) or name in METADATA_NAMES for name in files):
            found.append(places.name(folder))
        if depth < _DEPTH:
            folders += [
                (folder / name, depth + 1) for name, is_folder in sorted(names) if is_folder and name not in _OWN
            ]
    return found


def _stamp(folder: Path) -> object:
    """What changes when a file of a folder comes, goes, or is written whole."""
    try:
        with os.scandir(folder) as entries:
            inner = [
                (entry.name, entry.stat().st_mtime_ns)
                for entry in entries
                if entry.name in METADATA_NAMES or entry.is_dir(follow_symlinks=False)
            ]
        return (folder.stat().st_mtime_ns, *sorted(inner))
    except OSError:
        return object()
