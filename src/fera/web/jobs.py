"""Commands of fera as processes of their own, and the queue of runs that wait for their turn.

A job outlives the page: it is the leader of its own session, and its output goes to a file. What the page knows of jobs
lies in one file, written whole. Whether a job is alive is told by a lock of the system on its output, which the job
inherits: nobody has to be there when it ends, and a process of a recycled number is not taken for it.
"""

import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fera.errors import FeraError
from fera.support.files import replace_text

State = Literal["queued", "running", "stopping", "done", "failed", "stopped"]
OPEN: tuple[State, ...] = ("queued", "running", "stopping")
# Ended jobs that are remembered.
_MOST_ENDED = 200
_TAIL_BYTES = 64 * 1024
_ARGUMENTS = 256


@dataclass(frozen=True)
class Job:
    """A command of fera.

    Args:
        id: names its output.
        command: arguments after `fera`.
        run: name of the run that it is about; empty where there is none.
        trains: whether it is a training run.
        line: jobs of one line run one at a time; those of none start at once.
        state: where it is.
        pid: its process, once it started.
        code: its exit code, where the page was there to hear it.
        made: when it was asked for, in seconds since 1970.
    """

    id: str
    command: tuple[str, ...]
    run: str
    trains: bool
    state: State = "queued"
    pid: int | None = None
    code: int | None = None
    made: float = 0.0
    line: str = ""

    @property
    def text(self) -> str:
        """As it is typed in a terminal."""
        return shlex.join(("fera", *self.command))


class Queue:
    """Jobs of one folder. All methods may be called from any thread.

    Args:
        root: where commands run.
        folder: where jobs are kept; `folder` afterwards.
        program: what stands before a command's arguments.

    Raises:
        FeraError: another page has the folder, or it cannot be written.
    """

    def __init__(self, root: Path, folder: Path, program: Sequence[str] = (sys.executable, "-m", "fera.cli")) -> None:
        self._program = program
        self._root = root
        self.folder = folder
        self._mutex = threading.RLock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.note = ""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._held = (folder / "page.lock").open("a")
            fcntl.flock(self._held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FeraError(f"another `fera web` has {root} open; use its page, or stop it first") from None
        except OSError as error:
            raise FeraError(f"cannot write to {folder}: {error.strerror or error}") from error
        self._jobs = {job.id: job for job in self._read()}

    def close(self) -> None:
        """Let go of the folder. Jobs go on."""
        self._held.close()

    @property
    def jobs(self) -> list[Job]:
        """All that are remembered, the oldest first."""
        with self._mutex:
            return list(self._jobs.values())

    def add(self, command: tuple[str, ...], run: str, *, trains: bool, line: str = "") -> Job:
        """Put a command in line; it starts at the next `tick`.

        Args:
            command: arguments after `fera`.
            run: the run that it is about; empty for none.
            trains: whether it trains it; runs have a line of their own.
            line: another line to wait in; none starts at once.

        Raises:
            FeraError: the run is in line already, or the queue cannot be written.
        """
        with self._mutex:
            if trains and any(job.run == run and job.trains and job.state in OPEN for job in self._jobs.values()):
                raise FeraError(f"{run} is in the queue already; wait for it, or stop it")
            job = Job(uuid.uuid4().hex[:12], command, run, trains, made=time.time(), line="train" if trains else line)
            before = dict(self._jobs)
            self._jobs[job.id] = job
            try:
                self._write()
            except OSError as error:
                self._jobs = before
                raise FeraError(
                    f"cannot write the queue to {self.folder}: {error.strerror or error}. Nothing was started"
                ) from error
            return job

    def stop(self, id_: str) -> Job:
        """Ask a running job to stop, a run saving a checkpoint first; take a waiting one out of the line.

        Raises:
            FeraError: there is no such job, or it has ended.
        """
        with self._mutex:
            job = self._jobs.get(id_)
            if job is None or job.state not in OPEN:
                raise FeraError("that job has ended; look at its run again")
            if job.state == "queued":
                return self._set(job, state="stopped")
            if job.pid is not None and self._is_alive(job):
                with suppress(ProcessLookupError):
                    os.kill(job.pid, signal.SIGTERM)
            return self._set(job, state="stopping")

    def tick(self) -> None:
        """See which jobs have ended, and start what is next."""
        with self._mutex:
            for job in self.jobs:
                if job.state in ("running", "stopping") and not self._is_alive(job):
                    self._end(job)
            busy = {job.line for job in self._jobs.values() if job.state in ("running", "stopping")} - {""}
            for job in self.jobs:
                if job.state == "queued" and job.line not in busy:
                    self._start(job)
                    busy |= {job.line} - {""}

    def output(self, id_: str, most: int = _TAIL_BYTES) -> str:
        """The end of what a job printed, of at most so many bytes; empty where it printed nothing yet."""
        with self._mutex:
            if id_ not in self._jobs:
                return ""
        try:
            with self._output(id_).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - most))
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""

    def job(self, id_: str) -> Job | None:
        """A job by its id."""
        with self._mutex:
            return self._jobs.get(id_)

    def last_of(self, run: str, *, trains: bool = True) -> Job | None:
        """The newest job of a run."""
        return next((job for job in reversed(self.jobs) if job.run == run and job.trains == trains), None)

    def _start(self, job: Job) -> None:
        try:
            with self._output(job.id).open("wb") as output:
                fcntl.flock(output, fcntl.LOCK_EX)
                process = subprocess.Popen(
                    [*self._program, *job.command],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._root,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", "COLUMNS": "110", "NO_COLOR": "1"},
                    start_new_session=True,  # Ctrl-C is for the page
                )
        except OSError as error:
            self.note = f"could not start {job.text}: {error.strerror or error}"
            self._set(job, state="failed")
            return
        self._processes[job.id] = process
        self._set(job, state="running", pid=process.pid)

    def _is_alive(self, job: Job) -> bool:
        if (process := self._processes.get(job.id)) is not None:
            return process.poll() is None
        try:
            with self._output(job.id).open("rb") as output:
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    def _end(self, job: Job) -> None:
        process = self._processes.pop(job.id, None)
        code = None if process is None else process.returncode
        if job.state == "stopping":
            state: State = "stopped"
        elif code is not None:
            state = "done" if code == 0 else "failed"
        else:  # it ended while no page was there; a command says an error last
            state = "failed" if "\nerror: " in f"\n{self.output(job.id)}" else "done"
        self._set(job, state=state, code=code)

    def _set(self, job: Job, **changes: Any) -> Job:
        job = self._jobs[job.id] = replace(job, **changes)
        try:
            self._write()
            self.note = self.note if job.state == "failed" else ""
        except OSError as error:
            self.note = f"the queue cannot be written: {error.strerror or error}. Make room; runs go on meanwhile"
        return job

    def _output(self, id_: str) -> Path:
        return self.folder / f"{id_}.txt"

    def _write(self) -> None:
        ended = [job.id for job in self._jobs.values() if job.state not in OPEN]
        for id_ in ended[: max(0, len(ended) - _MOST_ENDED)]:
            del self._jobs[id_]
            with suppress(OSError):
                self._output(id_).unlink()
        lines = [asdict(job) for job in self._jobs.values()]
        replace_text(self.folder / "queue.json", json.dumps(lines, indent=1) + "\n")

    def _read(self) -> list[Job]:
        try:
            entries = json.loads((self.folder / "queue.json").read_text(encoding="utf-8"))
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError):
            self.note = "the queue of the last time could not be read, and is empty now; runs are as they were"
            return []
        jobs = [_job(entry) for entry in entries] if isinstance(entries, list) else []
        return [job for job in jobs if job is not None]


def _job(entry: Any) -> Job | None:
    """A job of the file; None for what is none."""
    try:
        job = Job(**{**entry, "command": tuple(entry["command"])})
        if job.trains:
            job = replace(job, line="train")  # of a file from before there were lines
    except (TypeError, KeyError):
        return None
    # The name goes into a path, the command into a process.
    is_sound = isinstance(job.id, str) and job.id.isalnum() and isinstance(job.run, str) and isinstance(job.line, str)
    is_sound = is_sound and all(isinstance(word, str) for word in job.command) and len(job.command) <= _ARGUMENTS
    return job if is_sound and (job.pid is None or isinstance(job.pid, int)) else None
