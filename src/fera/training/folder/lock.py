"""One run in a folder at a time: a lock of the operating system, which ends with the process that holds it."""

import errno
import json
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from fera.errors import FeraError

LOCK = ".lock"
# What a file system without locks answers.
_NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)

if sys.platform == "win32":
    import msvcrt

    def _lock(file: IO[str]) -> None:
        # A byte far behind the text, for Windows lets nobody else read what is locked.
        file.seek(2**30)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error
else:
    import fcntl

    def _lock(file: IO[str]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def run_lock(folder: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Hold a run's folder; it is made if missing, and removed again if nothing was put there.

    The file `.lock` in it says who holds the lock. The lock itself is the system's (`flock`): that of a process that
    was killed holds nobody up.

    Args:
        folder: the folder of the run.
        say: hears it where the file system has no locks.

    Raises:
        FeraError: another process holds it, or the folder cannot be written.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    path = folder / LOCK
    try:
        file = _hold(path, say)
        with suppress(OSError):  # a full disk: held it is
            file.seek(0)
            file.truncate()
            file.write(json.dumps(_myself()))
            file.flush()
    except BlockingIOError:
        raise FeraError(_in_use(path)) from None
    except OSError as error:
        _remove_empty(missing)
        if isinstance(error, FileExistsError | NotADirectoryError):
            raise FeraError(f"output_dir {folder} is a file, or inside of one; give a folder") from error
        raise FeraError(f"cannot write to output_dir {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        # While it is held: once it is free, another process may hold the file of this name.
        with suppress(OSError):
            path.unlink()
        with suppress(OSError):
            file.close()
        _remove_empty(missing)


def _hold(path: Path, say: Callable[[str], None]) -> IO[str]:
    """Open and lock a file that stays the one of its name."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            file = path.open("a+", encoding="utf-8")
        except FileNotFoundError:  # another run removed its empty folder just now
            continue
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except FileNotFoundError:
            pass  # its holder removed it between our opening and our locking
        except OSError as error:
            if error.errno in _NO_LOCKS:
                say(f"{path.parent} is on a file system without locks: nothing keeps a second run out of it")
                return file
            file.close()
            raise
        file.close()


def _myself() -> dict[str, str | int]:
    now = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    return {"pid": os.getpid(), "host": socket.gethostname(), "since": now}


def _in_use(path: Path) -> str:
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        who = f"process {holder['pid']} on {holder['host']}, since {holder['since']}"
        how = f"stop it (`kill {holder['pid']}` there lets it save a checkpoint first)"
    except (OSError, ValueError, TypeError, KeyError):
        who, how = "another process", "stop it"
    return f"{path.parent} is in use by another run: {who}. Wait for it, {how}, or choose another output_dir"


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the innermost first, up to one that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
