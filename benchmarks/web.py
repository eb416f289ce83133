"""The page of `fera web`: how soon it answers, and what being watched costs a training run.

The server is a process of its own, over 200 runs and 5,000 pictures. Its answers are compared with 100 ms, and the
first page after the start with a second. A page that watches is a process that asks as its script does. It is halted
while the step is measured alone, so that short turns follow each other closely and the same state of the machine is on
both sides; the median over many of them says what being watched costs.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from PIL import Image

import fera
from benchmarks.contestants import batch_for, emoji_unet, training_step, with_fera
from benchmarks.meters import REPORTED_SECONDS, Clock
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting

_SOURCE = Path(fera.__file__).parents[1]
_WATCHED = "runs/run-000"
# What an open page of a run asks for, and how often in seconds: as run.html and web.js say.
_PARTS = {"/run/live": 2.0, "/run/samples": 2.0, "/run/charts": 4.0}
_PAGE = """
import sys, time, urllib.request
parts = [[0.0, float(every), url] for url, every in zip(sys.argv[1::2], sys.argv[2::2])]
while True:
    for part in parts:
        if time.monotonic() >= part[0]:
            part[0] = time.monotonic() + part[1]
            urllib.request.urlopen(part[2]).read()
    time.sleep(0.05)
"""
_FORM = {"base": "emoji", "output_dir": "runs/new", "data.train_data_dir": "data"}


def races(setting: Setting) -> Iterator[Race]:
    """The first page, a race an address, and a training step that is watched."""
    runs, pictures = (4, 20) if setting.small else (200, 5000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        _write_runs(root / "runs", runs)
        _write_pictures(root / "data", pictures)
        first = {"first page": lambda clock: _first_page(root, clock), "a second": lambda clock: 1.0}
        goal = [Comparison("first page", "a second", at_most=1.0)]
        yield Race("the server is up", first, goal, 1 if setting.small else 5, warm_up=0, meter=REPORTED_SECONDS)
        with _server(root) as (address, processor):
            for name, ask in _requests(address).items():
                contestants = {"answer": _timed(ask, processor), "100 ms": lambda clock: 0.1}
                goal = [Comparison("answer", "100 ms", at_most=1.0)]
                case = f"{name}; {runs} runs, {pictures:,} pictures"
                yield Race(case, contestants, goal, 2 if setting.small else 15, meter=REPORTED_SECONDS)
            step = training_step(with_fera(emoji_unet(setting)), batch_for(emoji_unet(setting), 1, 8))
            log, count = root / _WATCHED / "log.jsonl", 2 if setting.small else 10
            with _page(address) as watching:
                contestants = {
                    "watched": _steps(step, count, log, watching),
                    "alone": _steps(step, count, log, nullcontext),
                }
                goal = [Comparison("watched", "alone", at_most=1.01)]
                rounds = 2 if setting.small else 120
                yield Race("a training step that is logged", contestants, goal, rounds, 2, REPORTED_SECONDS)


def _requests(address: str) -> dict[str, Callable[[], object]]:
    paths = {
        "the list of runs": "/runs/rows",
        "a run's curves": f"/run/charts?name={_WATCHED}",
        "the form to train": "/train",
        "the list of pictures": "/data/rows?folder=data",
        "a search in captions": "/data/rows?folder=data&search=number%2017",
        "a thumbnail": "/thumb?path=data/00017.png",
        "the page to draw on": "/draw",
    }

    def get(path: str) -> Callable[[], object]:
        return lambda: _get(address + path)

    def edit() -> None:
        rows = _get(f"{address}/data/rows?folder=data")
        version = int(rows.split(b'data-version="')[1].split(b'"')[0])
        given = {"folder": "data", "version": version, "name": "00017.png", "caption": f"edit {version}"}
        _post(f"{address}/do/data-edit", given)

    asked = {name: get(path) for name, path in paths.items()}
    return asked | {
        "the form's file": lambda: _post(f"{address}/do/preview", {"values": _FORM}),
        "a list and an edit of a caption": edit,
    }


def _timed(ask: Callable[[], object], processor: Clock) -> Callable[[Clock], float]:
    """Seconds until an answer is there; where CPU time is counted, the server's alone."""

    def run(clock: Clock) -> float:
        clock = processor if clock is time.process_time else clock
        began = clock()
        ask()
        return clock() - began

    return run


def _steps(step: Callable[[], None], count: int, log: Path, watching: Any) -> Callable[[Clock], float]:
    """Seconds of a step, with a line in the log after each."""

    def run(clock: Clock) -> float:
        with watching():
            began = clock()
            for number in range(count):
                step()
                line = {"step": 1000 + number, "loss": 0.8, "gates": [0.2, 0.5, 0.3], "bands": [0.5, 0.3, 0.2]}
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            return (clock() - began) / count

    return run


@contextmanager
def _page(address: str) -> Iterator[Callable[[], Any]]:
    """A page that is open in another process, as in a browser; it asks only within what is yielded."""
    asked = [word for part, every in _PARTS.items() for word in (f"{address}{part}?name={_WATCHED}", str(every))]
    page = subprocess.Popen([sys.executable, "-c", _PAGE, *asked])

    @contextmanager
    def watching() -> Iterator[None]:
        page.send_signal(signal.SIGCONT)
        try:
            yield
        finally:
            page.send_signal(signal.SIGSTOP)
            time.sleep(0.1)  # what the server still answers is no part of the next turn

    try:
        time.sleep(1.0)  # its own start is no part of watching
        page.send_signal(signal.SIGSTOP)
        yield watching
    finally:
        page.kill()
        page.wait()


def _first_page(root: Path, clock: Clock) -> float:
    with _server(root, wait_for_page=False) as (address, processor):
        clock = processor if clock is time.process_time else clock
        began = clock()
        _get(f"{address}/")
        return clock() - began


@contextmanager
def _server(root: Path, *, wait_for_page: bool = True) -> Iterator[tuple[str, Clock]]:
    """Its address, and a clock of its CPU time."""
    kept = {"PYTHONPATH": str(_SOURCE), "FERA_CACHE": str(root.parent / "cache"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "fera.cli", "web", str(root), "--port", "0"]
    with (root.parent / "said.txt").open("wb+") as said:
        server = subprocess.Popen(command, env=os.environ | kept, stdout=said, stderr=said)
        try:
            address = ""
            while not address:
                words = (root.parent / "said.txt").read_text(encoding="utf-8").split()
                address = next((word.rstrip("/") for word in words if word.startswith("http")), "")
                if server.poll() is not None:
                    raise RuntimeError(f"the server ended: {' '.join(words)}")
                time.sleep(0.02)
            if wait_for_page:
                _get(f"{address}/")
            yield address, lambda: _processor_seconds(server.pid)
        finally:
            server.terminate()
            server.wait()


def _processor_seconds(pid: int) -> float:
    """Of all threads of a process that live, on Linux: in nanoseconds, where others count in hundredths of a second."""
    return sum(int(path.read_text().split()[0]) for path in Path(f"/proc/{pid}/task").glob("*/schedstat")) * 1e-9


def _get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        content: bytes = answer.read()
        return content


def _post(url: str, body: dict[str, Any]) -> bytes:
    headers = {"Content-Type": "application/json"}
    with urllib.request.urlopen(urllib.request.Request(url, json.dumps(body).encode(), headers)) as answer:
        content: bytes = answer.read()
        return content


def _write_runs(folder: Path, count: int) -> None:
    """Folders of runs with 200 lines of a log each."""
    for number in range(count):
        run = folder / f"run-{number:03d}"
        (run / "checkpoints").mkdir(parents=True)
        settings = f'base = "emoji"\noutput_dir = "runs/{run.name}"\n[data]\ntrain_data_dir = "data"\n'
        (run / "config.toml").write_text(f"{settings}[train]\nsteps = 2000\n", encoding="utf-8")
        lines = [
            {
                "step": step,
                "loss": 1 / step,
                "lr": 1e-4,
                "gates": [0.2, 0.5, 0.3],
                "gate_entropy": 0.9,
                "bands": [0.5, 0.3, 0.2],
                "gates_by_noise": [[0.2, 0.5, 0.3]] * 8,
                "bands_by_noise": [[0.5, 0.3, 0.2]] * 8,
            }
            for step in range(1, 201)
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (run / "log.jsonl").write_text(text, encoding="utf-8")


def _write_pictures(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        colour = (number % 256, number // 256, 128)
        Image.new("RGB", (64, 64), colour).save(folder / f"{number:05d}.png", compress_level=1)
        (folder / f"{number:05d}.txt").write_text(f"a picture, number {number}\n", encoding="utf-8")
