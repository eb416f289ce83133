"""Several processes, one study: who works on which run."""

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_CLAIM = "claim.json"


@contextmanager
def claim(folder: Path) -> Iterator[bool]:
    """Claim a folder for the length of a block.

    The claim is a file that only one process can create. That of a process which has died on this host is taken
    over; whether one on another host still lives cannot be known, so its claim stands until the file is removed.
    A lock of the system, as a run has, would not do: many a file system that hosts share keeps locks to each of them.

    Args:
        folder: made if missing.

    Yields:
        Whether it is ours now.
    """
    path = folder / _CLAIM
    folder.mkdir(parents=True, exist_ok=True)
    if not _create(path) and not (_take_away_stale(path) and _create(path)):
        yield False
        return
    try:
        yield True
    finally:
        path.unlink(missing_ok=True)


def holder(folder: Path) -> str | None:
    """Who holds a folder, in words; None where nobody does."""
    found = _read(folder / _CLAIM)
    return f"process {found.get('pid')} on {found.get('host')}" if found is not None else None


def _create(path: Path) -> bool:
    # Written aside and linked: a claim that exists is complete.
    own = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    own.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "born": _born(os.getpid())}))
    try:
        os.link(own, path)
    except FileExistsError:
        return False
    finally:
        own.unlink()
    return True


def _take_away_stale(path: Path) -> bool:
    """Remove a claim whose process is gone; of several processes that try, one succeeds."""
    found = _read(path)
    if found is None:
        return True  # let go of since
    if found.get("host") != socket.gethostname() or _lives(found):
        return False
    aside = path.with_name(f".{path.name}.stale-{uuid.uuid4().hex}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return True
    if _read(aside) != found:  # someone else took it over in between: give it back
        aside.rename(path)
        return False
    aside.unlink()
    return True


def _read(path: Path) -> dict[str, object] | None:
    for _ in range(3):
        try:
            return dict(json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except ValueError:
            time.sleep(0.05)
    return {}


def _lives(found: dict[str, object]) -> bool:
    pid = found.get("pid")
    if not isinstance(pid, int) or os.name == "nt":  # Windows' os.kill ends processes
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return _born(pid) == found.get("born")


def _born(pid: int) -> str | None:
    """When a process began, where the system tells: its number alone may have gone to another since."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return stat.rpartition(")")[2].split()[19]
