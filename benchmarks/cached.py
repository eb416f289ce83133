"""Data at scale: start-up of a run whose pictures are cached, and filling the cache, as processes.

The emoji base, 10,000 pictures of 512 x 512 with captions of their own, all of them cached, to the first step: CPU
seconds and the most resident memory. And `fera train` for one step on 2,000 pictures of 64 x 64 with nothing cached:
wall time, most of which is encoding. They are compared with the same of another checkout, where the environment
variable FERA_BEFORE names its `src` folder:

    git worktree add runs/before COMMIT
    FERA_BEFORE=runs/before/src python -m benchmarks cached
"""

import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fera
from benchmarks.meters import REPORTED_SECONDS, Clock, Meter
from benchmarks.peaks import run_fera
from benchmarks.pictures import make_pictures
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting

_CACHED, _ENCODED = 10_000, 2_000
_SOURCE = Path(fera.__file__).parents[1]
_PEAK = Meter(lambda work, clock: float(work(clock)), "MB", 1e-6)
_WALL = Meter(lambda work, clock: float(work(clock)), "s", 1.0)


def races(setting: Setting) -> Iterator[Race]:
    """One race for the time of the start, one for its memory, one for encoding."""
    sources = {"now": _SOURCE}
    if before := os.environ.get("FERA_BEFORE"):
        sources["before"] = Path(before).resolve()
    rounds = 1 if setting.small else 3
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent)
        many = make_pictures(folder / "many", 10 if setting.small else _CACHED)
        few = make_pictures(folder / "few", 12, side=64)
        for what, goal, meter in (("time", 0.1, REPORTED_SECONDS), ("memory", 0.3, _PEAK)):
            contestants = {name: _start(folder / name, source, many, what) for name, source in sources.items()}
            contestants["now, a dozen pictures"] = _start(folder / "dozen", _SOURCE, few, what)
            comparisons = [Comparison("now", "now, a dozen pictures")]
            if len(sources) > 1:
                comparisons.insert(0, Comparison("now", "before", at_most=goal))
            name = f"{what} of fera train to its first step, {_CACHED:,} cached pictures"
            # What fills the caches is not counted.
            yield Race(name, contestants, comparisons, rounds, warm_up=1 if what == "time" else 0, meter=meter)
        some = make_pictures(folder / "some", 10 if setting.small else _ENCODED, side=64)
        encoding = {name: _encode(folder / f"encode-{name}", source, some) for name, source in sources.items()}
        comparisons = [Comparison("now", "before", at_most=0.6)] if len(sources) > 1 else []
        name = f"fera train from nothing cached, {_ENCODED:,} pictures with captions"
        yield Race(name, encoding, comparisons, rounds, warm_up=0, meter=_WALL)


def _start(folder: Path, source: Path, pictures: Path, what: str) -> Callable[[Clock], float]:
    """CPU seconds, or bytes."""

    def start(clock: Clock) -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        peak = _train(folder, source, pictures)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
        return seconds if what == "time" else peak

    return start


def _encode(folder: Path, source: Path, pictures: Path) -> Callable[[Clock], float]:
    def encode(clock: Clock) -> float:
        shutil.rmtree(folder, ignore_errors=True)
        began = time.monotonic()
        _train(folder, source, pictures)
        return time.monotonic() - began

    return encode


def _train(folder: Path, source: Path, pictures: Path) -> float:
    """One step; the most bytes that the process had at a time."""
    shutil.rmtree(folder / "run", ignore_errors=True)
    settings = {
        "base": "emoji",
        "output_dir": folder / "run",
        "data.train_data_dir": pictures,
        "data.cache_dir": folder / "cache",
        "train.steps": 1,
        "train.report_to": "none",
    }
    flags = [part for name, value in settings.items() for part in (f"--{name}", str(value))]
    kept = {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "FERA_CACHE": str(folder / "known")}
    return run_fera(["train", *flags], kept)
