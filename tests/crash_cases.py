"""Runs in forked processes that are killed: at a file operation, in the midst of writing a file, or at any time."""

import gc
import os
import random
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

from fera.training.trainer import Trainer

FILE_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree"}

Event = tuple[str, str]


def start(work: Callable[[], object]) -> int:
    """Run something in a forked process, which sees all that is imported; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        gc.freeze()  # what the parent made is not worth collecting
        work()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def outcome(pid: int) -> int:
    """Exit code of a process, or the negative number of the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(work: Callable[[], object]) -> int:
    """Run something in a forked process to its end; its exit code."""
    return outcome(start(work))


def events_of(work: Callable[[], object], folder: Path, record: Path) -> list[Event]:
    """What a whole run does in a folder, and its forwards and updates, in order."""

    def recorded() -> None:
        events: list[Event] = []
        on_events(folder, lambda *event: events.append(event))
        work()
        record.write_text("\n".join("\t".join(event) for event in events))

    assert run(recorded) == 0
    return [tuple(line.split("\t")) for line in record.read_text().splitlines()]  # type: ignore[misc]


def kill_at_event(work: Callable[[], object], folder: Path, number: int) -> int:
    """Kill a run just before its event of this number, counted from 0."""

    def killed() -> None:
        left = number

        def count(*event: str) -> None:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1

        on_events(folder, count)
        work()

    return run(killed)


def kill_in_a_file(work: Callable[[], object], size: int) -> int:
    """Let the system end a run in the midst of its first file that grows beyond a size in bytes."""

    def killed() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        work()

    return run(killed)


def kill_after(work: Callable[[], object], seconds: float) -> int:
    """Kill a run after some time."""
    pid = start(work)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return outcome(pid)


def on_events(folder: Path, tell: Callable[[str, str], None]) -> None:
    """Tell each file operation below a folder just before it is done, and each forward and update of a training."""
    inside = str(folder)

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in FILE_EVENTS and str(arguments[0]).startswith(inside):
            tell(event, str(arguments[0]))

    for name in ("_loss", "_update"):
        setattr(Trainer, name, _told(getattr(Trainer, name), lambda name=name: tell("step", name)))
    sys.addaudithook(hook)


def spread(events: list[Event], count: int, seed: int) -> list[int]:
    """Numbers of some random events, of all kinds alike."""
    kinds = {
        "cache": [n for n, (_, path) in enumerate(events) if "/cache/" in path],
        "inside a checkpoint": [n for n, (_, path) in enumerate(events) if "/.step-" in path and ".tmp" in path],
        "before its rename": [n for n, event in enumerate(events) if _is_rename(event)],
        "before rotation": [n + 1 for n, event in enumerate(events) if _is_rename(event)],
        "rotation": [n for n, (_, path) in enumerate(events) if path.endswith(".old")],
        "adapter": [n for n, (_, path) in enumerate(events) if "/adapter/" in path and "step-" not in path],
        "log": [n for n, (_, path) in enumerate(events) if path.endswith("log.jsonl")],
        "step": [n for n, (event, _) in enumerate(events) if event == "step"],
    }
    assert all(kinds.values()), kinds
    generator = random.Random(seed)
    order = generator.sample(list(kinds), len(kinds))
    return [generator.choice(kinds[order[number % len(order)]]) for number in range(count)]


def _is_rename(event: Event) -> bool:
    return event[0] == "os.rename" and event[1].endswith(".tmp") and "/.step-" in event[1] and "adapter" not in event[1]


def _told(function: Callable, tell: Callable[[], None]) -> Callable:
    def telling(*arguments: object) -> object:
        tell()
        return function(*arguments)

    return telling
