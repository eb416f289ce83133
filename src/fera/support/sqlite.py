"""A SQLite file that helps and is never needed: whatever is wrong with it, work goes on as if there were none."""

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TypeVar

# Seconds to wait for another process that writes.
_PATIENCE = 5.0

_T = TypeVar("_T")


def user_folder() -> Path:
    """Where this user's indexes are: `FERA_CACHE`, or `fera` of the user's cache folder."""
    own = os.environ.get("FERA_CACHE")
    cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fera")
    return cache.expanduser()


def work_in(path: Path, tables: str, work: Callable[[sqlite3.Connection], _T], otherwise: _T) -> _T:
    """Do something in one transaction; a damaged file is replaced by a new one.

    Args:
        path: the file; made when there is none.
        tables: SQL that makes the tables that are not there.
        work: gets the connection.
        otherwise: the answer where it cannot be done.
    """
    for _ in range(2):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(path, timeout=_PATIENCE)) as connection:
                connection.executescript(tables)
                with connection:
                    return work(connection)
        except (sqlite3.OperationalError, OSError):  # no room, no right to write, another process writes for long
            return otherwise
        except sqlite3.DatabaseError:
            for file in (path, Path(f"{path}-journal")):
                with suppress(OSError):
                    file.unlink(missing_ok=True)
    return otherwise
