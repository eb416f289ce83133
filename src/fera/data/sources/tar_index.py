"""What is known of tar archives that were read before: an unchanged one is not read again."""

import json
import sqlite3
import time
from pathlib import Path

from fera.data.index import stamp_of
from fera.support.sqlite import user_folder, work_in

_TABLES = """
CREATE TABLE IF NOT EXISTS archives (
    path TEXT PRIMARY KEY, bytes INTEGER, modified INTEGER, changed INTEGER, samples TEXT
) WITHOUT ROWID;
"""
# Seconds that an archive must be left alone before it is noted: times of files are coarse.
_SETTLED = 2.0

# Name, file of the picture in the store if it has one, and texts by their endings.
Row = tuple[str, str | None, dict[str, str]]


def known_samples(archive: Path) -> list[Row] | None:
    """The samples of an archive that has not changed since they were noted; None where they are not known.

    Raises:
        OSError: there is no such archive.
    """
    if not _file().exists():
        return None
    key = (str(archive.absolute()), *stamp_of(archive))

    def find(connection: sqlite3.Connection) -> str | None:
        asked = "SELECT samples FROM archives WHERE path = ? AND bytes = ? AND modified = ? AND changed = ?"
        return next((str(row[0]) for row in connection.execute(asked, key)), None)

    found = work_in(_file(), _TABLES, find, None)
    return None if found is None else [(name, picture, texts) for name, picture, texts in json.loads(found)]


def note_samples(archive: Path, stamp: tuple[int, int, int], samples: list[Row]) -> None:
    """Remember the samples of an archive.

    Args:
        archive: the archive.
        stamp: as `stamp_of` gave it before it was read.
        samples: all of them.
    """
    if max(stamp[1:]) >= time.time_ns() - _SETTLED * 1e9:
        return
    row = (str(archive.absolute()), *stamp, json.dumps(samples))

    def write(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT OR REPLACE INTO archives VALUES (?, ?, ?, ?, ?)", row)

    work_in(_file(), _TABLES, write, None)


def _file() -> Path:
    return user_folder() / "archives.sqlite"
