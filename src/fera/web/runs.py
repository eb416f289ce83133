"""Runs below a folder: where they are, how far each has come, and what there is to show of one."""

import json
import os
import socket
import tomllib
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from fera.errors import FeraError
from fera.report.log import Log, number, read_log
from fera.training.folder.lock import LOCK
from fera.training.folder.run_folder import RunFolder
from fera.web.jobs import OPEN, Job, Queue
from fera.web.places import Places

# Folders in folders that are searched, and how many entries at most: a page is no search of a whole disk.
_DEPTH = 4
_MOST_ENTRIES = 100_000
# Bytes of the end of a log in which its last lines are.
_TAIL = 16 * 1024
_CONFIG_BYTES = 2**20

WORDS = {
    "queued": "waiting for its turn",
    "starting": "starting",
    "running": "running",
    "stopping": "stopping: it saves a checkpoint first",
    "finished": "finished",
    "failed": "failed",
    "stopped": "stopped",
}


@dataclass(frozen=True)
class RunRow:
    """A run in the list.

    Args:
        name: its folder, relative to the root.
        state: one of `WORDS`.
        step: the last one in its log.
        steps: how many it was to take; None where nothing says so.
        loss: the last training loss.
        held_out: the last held-out loss.
        gates: the last mean gate of each expert; empty where nothing is routed.
        changed: when its log, or else its configuration, was last written, in seconds since 1970.
        is_ours: whether a job of this page is what runs.
    """

    name: str
    state: str
    step: int
    steps: int | None
    loss: float | None
    held_out: float | None
    gates: tuple[float, ...]
    changed: float
    is_ours: bool

    @property
    def is_open(self) -> bool:
        """Whether it goes on, or will."""
        return self.state in ("queued", "starting", "running", "stopping")

    @property
    def can_resume(self) -> bool:
        """Whether it can go on."""
        return self.state in ("stopped", "failed")

    @property
    def words(self) -> str:
        """Its state in words."""
        return WORDS[self.state]

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return min(1.0, self.step / self.steps) if self.steps else 0.0


def list_runs(places: Places, queue: Queue) -> list[RunRow]:
    """All runs below the root, and those in the queue that have no folder yet; the newest first.

    Raises:
        FeraError: the root is gone.
    """
    if not places.root.is_dir():
        raise FeraError(f"{places.root} is gone. Put it back; what runs goes on if its own folder is there")
    jobs: dict[str, Job] = {job.run: job for job in queue.jobs if job.trains}
    rows = {name: _row(places.root / name, name, jobs.get(name)) for name in find_runs(places.root)}
    for name, job in jobs.items():
        if name not in rows and job.state in OPEN:
            rows[name] = _row(places.root / name, name, job)
    return sorted(rows.values(), key=lambda row: (not row.is_open, -row.changed))


def read_row(places: Places, queue: Queue, name: str) -> RunRow:
    """One run.

    Args:
        places: where it must be.
        queue: may know of it.
        name: its folder, relative to the root.

    Raises:
        FeraError: there is no such run, or its folder is gone.
    """
    path = run_path(places, name)
    job = queue.last_of(places.name(path))
    if not is_run(path) and (job is None or (job.state not in OPEN and job.state != "failed")):
        raise FeraError(f"there is no run {name} any more. If you moved its folder, it is in the list by its new name")
    return _row(path, places.name(path), job)


def run_path(places: Places, name: str) -> Path:
    """Folder of a run.

    Raises:
        FeraError: it is not inside of the root.
    """
    path = places.inside(name)
    if not path.is_relative_to(places.root) or path == places.root:
        raise FeraError(f"{name} is no folder of a run below {places.root}")
    return path


def find_runs(root: Path) -> list[str]:
    """Names of all run folders below a folder, links not followed."""
    found: list[str] = []
    left = _MOST_ENTRIES
    folders = [(root, 0)]
    while folders and left > 0:
        folder, depth = folders.pop()
        try:
            with os.scandir(folder) as entries:
                inner = []
                for entry in entries:
                    left -= 1
                    if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                        inner.append(Path(entry.path))
        except OSError:
            continue  # gone meanwhile, or another user's
        if folder != root and is_run(folder):
            found.append(folder.relative_to(root).as_posix())
        elif depth < _DEPTH:
            folders += [(path, depth + 1) for path in inner]
    return found


def with_adapters(root: Path) -> list[str]:
    """Names of all runs below a folder that have an adapter."""
    return [name for name in find_runs(root) if RunFolder(root / name).adapter.is_dir()]


def is_run(path: Path) -> bool:
    """Whether a folder is one of a run: a configuration, and something that a run wrote beside it."""
    run = RunFolder(path)
    return run.config.is_file() and any(one.exists() for one in (run.checkpoints, run.log, run.summary, run.adapter))


def log_of(path: Path) -> Log:
    """The log of a run; empty where there is none, read again only once it changed."""
    try:
        status = (path / "log.jsonl").stat()
        return _log(path / "log.jsonl", status.st_mtime_ns, status.st_size)
    except OSError:
        return Log([])


def summary_of(path: Path) -> dict[str, Any]:
    """The summary of a finished run; empty where there is none that can be read."""
    try:
        summary = json.loads((path / "summary.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return summary if isinstance(summary, dict) else {}


@lru_cache(maxsize=32)
def _log(path: Path, _changed: int, _size: int) -> Log:
    return read_log(path)


def _row(path: Path, name: str, job: Job | None) -> RunRow:
    step, loss, held_out, gates, changed = _newest(path)
    return RunRow(
        name=name,
        state=_state(path, job, step),
        step=step,
        steps=_steps(path),
        loss=loss,
        held_out=held_out,
        gates=gates,
        changed=changed or (job.made if job is not None else 0.0),
        is_ours=job is not None and job.state in OPEN,
    )


def _state(path: Path, job: Job | None, step: int) -> str:
    if job is not None and job.state in ("queued", "stopping"):
        return job.state
    if job is not None and job.state == "running":
        return "running" if (path / LOCK).exists() and step else "starting"
    if _is_held(path / LOCK):
        return "running"
    if (path / "summary.json").is_file():
        return "finished"
    return "failed" if job is not None and job.state == "failed" else "stopped"


def _is_held(lock: Path) -> bool:
    """Whether the process that a lock names is there: the lock itself is left alone, for a run may want it just now."""
    try:
        holder = json.loads(lock.read_text(encoding="utf-8"))
        if holder["host"] != socket.gethostname():
            return True  # on a shared disk; its log tells the rest
        pid = int(holder["pid"])
        if pid <= 0:  # stands for many processes
            return False
        os.kill(pid, 0)
    except PermissionError:
        return True  # another user's
    except (OSError, ValueError, TypeError, KeyError, OverflowError):
        return False
    return True


def _newest(path: Path) -> tuple[int, float | None, float | None, tuple[float, ...], float]:
    log = path / "log.jsonl"
    try:
        status = log.stat()
        return (*_last_values(log, status.st_mtime_ns, status.st_size), status.st_mtime)
    except OSError:
        pass
    try:
        return 0, None, None, (), (path / "config.toml").stat().st_mtime
    except OSError:
        return 0, None, None, (), 0.0


@lru_cache(maxsize=4096)
def _last_values(path: Path, _changed: int, size: int) -> tuple[int, float | None, float | None, tuple[float, ...]]:
    """Last step, loss, held-out loss and gates of a log, from its end alone."""
    with path.open("rb") as file:
        file.seek(max(0, size - _TAIL))
        lines = file.read(_TAIL).decode("utf-8", "replace").splitlines()
    step, loss, held_out = 0, None, None
    gates: tuple[float, ...] = ()
    for line in lines:
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue  # cut off by the start of the tail, or still being written
        if not isinstance(record, dict):
            continue
        step = max(step, int(number(record.get("step")) or 0))
        loss = number(record.get("loss")) if "loss" in record else loss
        held_out = number(record.get("held_out_loss")) if "held_out_loss" in record else held_out
        if isinstance(record.get("gates"), list):
            gates = tuple(value for gate in record["gates"][:256] if (value := number(gate)) is not None)
    return step, loss, held_out, gates


def _steps(path: Path) -> int | None:
    try:
        status = (path / "config.toml").stat()
        return _configured_steps(path / "config.toml", status.st_mtime_ns, status.st_size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _configured_steps(path: Path, _changed: int, size: int) -> int | None:
    if size > _CONFIG_BYTES:
        return None
    try:
        steps = tomllib.loads(path.read_text(encoding="utf-8")).get("train", {}).get("steps")
    except (ValueError, AttributeError, RecursionError):
        return None
    return steps if isinstance(steps, int) and steps > 0 else None
