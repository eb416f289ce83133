"""What is known of picture files that were read before: an unchanged file is not read again.

A look-up in a SQLite file stands for decoding and hashing. A file is unchanged while its size and its times of
modification and of status change are as they were. The index is a help and no more: whatever is wrong with it, a full
disk or a damaged file among it, pictures are read as if there were none.
"""

import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeVar

import PIL

from fera.support.sqlite import user_folder, work_in

# Raise when a picture of the same file would be told otherwise.
_VERSION = 1
# Who decoded a picture: another Pillow may refuse what this one takes.
_READER = f"{_VERSION}, Pillow {PIL.__version__}"
_TABLES = """
CREATE TABLE IF NOT EXISTS files (
    path TEXT, use TEXT, reader TEXT, bytes INTEGER, modified INTEGER, changed INTEGER,
    digest TEXT, width INTEGER, height INTEGER, colours TEXT, PRIMARY KEY (path, use)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS masks (picture TEXT, mask TEXT, reader TEXT, PRIMARY KEY (picture, mask)) WITHOUT ROWID;
CREATE TEMP TABLE wanted (path TEXT PRIMARY KEY);
"""

Stamp = tuple[int, int, int]
# A picture is read in colour and a mask for its brightness: what is known of one says nothing of the other.
Use = Literal["picture", "mask"]

_T = TypeVar("_T")


@dataclass(frozen=True)
class Known:
    """What reading a picture's file told.

    Args:
        stamp: what the file system said of it then: `stamp_of`.
        digest: SHA-256 of the file.
        size: width and height in pixels, upright; (0, 0) of a mask.
        colours: what was done about its colour profile, in words.
    """

    stamp: Stamp
    digest: str
    size: tuple[int, int] = (0, 0)
    colours: str = ""


def stamp_of(path: Path) -> Stamp:
    """Size in bytes, times of modification and of status change in nanoseconds.

    Raises:
        OSError: there is no such file.
    """
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def user_index() -> "PictureIndex":
    """The index of this user: in `FERA_CACHE`, or in `fera` of the user's cache folder."""
    return PictureIndex(user_folder() / "pictures.sqlite")


class PictureIndex:
    """An index of picture files.

    Args:
        path: its file; made when something is noted.
        settled: seconds that a file must be left alone before it is noted: times of files are coarse, and one that is
            changed twice within a tick looks unchanged.
    """

    def __init__(self, path: Path, settled: float = 2.0) -> None:
        self._path = path
        self._settled = settled

    def known(self, files: Iterable[Path], use: Use = "picture") -> dict[Path, Known]:
        """What is known of those files that are unchanged.

        Args:
            files: need not exist.
            use: what they are read as.
        """
        stamps = {}
        for file in files:
            with suppress(OSError):
                stamps[file] = stamp_of(file)

        def find(connection: sqlite3.Connection) -> dict[Path, Known]:
            by_path = {_key(file): file for file in stamps}
            connection.executemany("INSERT INTO wanted VALUES (?)", ((key,) for key in by_path))
            rows = connection.execute(
                "SELECT path, bytes, modified, changed, digest, width, height, colours FROM files "
                "JOIN wanted USING (path) WHERE use = ? AND reader = ?",
                (use, _READER),
            )
            known = {by_path[row[0]]: Known(row[1:4], row[4], row[5:7], row[7]) for row in rows}
            return {file: known[file] for file in known if known[file].stamp == stamps[file]}

        return self._work(find, {}) if stamps and self._path.exists() else {}

    def fitting(self, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of some pairs of digests, picture and mask, that were found to fit."""
        wanted = set(pairs)

        def find(connection: sqlite3.Connection) -> set[tuple[str, str]]:
            rows = connection.execute("SELECT picture, mask FROM masks WHERE reader = ?", (_READER,))
            return wanted.intersection(rows)

        return self._work(find, set()) if wanted and self._path.exists() else set()

    def note(
        self, pictures: Mapping[Path, Known], masks: Mapping[Path, Known], fits: Iterable[tuple[str, str]]
    ) -> None:
        """Remember what reading files told.

        Args:
            pictures: those that can be used.
            masks: likewise.
            fits: digests of a picture and of a mask that fits it.
        """
        youngest = time.time_ns() - self._settled * 1e9
        rows = [
            (_key(file), use, _READER, *known.stamp, known.digest, *known.size, known.colours)
            for use, files in (("picture", pictures), ("mask", masks))
            for file, known in files.items()
            if max(known.stamp[1:]) < youngest
        ]
        pairs = [(*pair, _READER) for pair in fits]

        def write(connection: sqlite3.Connection) -> None:
            connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
            connection.executemany("INSERT OR REPLACE INTO masks VALUES (?, ?, ?)", pairs)

        if rows or pairs:
            self._work(write, None)

    def _work(self, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
        return work_in(self._path, _TABLES, work, otherwise)


def _key(file: Path) -> str:
    return str(file.absolute())
