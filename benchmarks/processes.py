"""Two processes against one: samples per second and core of `fera train`, a thread a process, gradients over gloo.

Processes are started by torchrun: `accelerate launch --cpu` starts more than one only through MPI. accelerate finds
itself among several all the same. Times are of the wall, whatever clock was asked for: waiting is what is looked for.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.meters import REPORTED_SPEED
from benchmarks.race import Comparison, Race
from benchmarks.trainers import run_config, style_folder
from fera.training.settings import to_toml


def races(small: bool) -> Iterator[Race]:
    """The emoji base; every process has a whole batch of its own."""
    size, steps, line = (1, 2, 1) if small else (8, 30, 5)
    with style_folder(small) as folder:
        yield Race(
            f"fera train per core, emoji base, batch {size} a process",
            {f"{count} process{'es' * (count > 1)}": _launch(folder, count, size, steps, line) for count in (2, 1)},
            [Comparison("2 processes", "1 process", at_least=0.9)],
            rounds=3,
            warm_up=0,  # a run has its own: its first lines are not counted
            meter=REPORTED_SPEED,
        )


def _launch(folder: Path, count: int, batch_size: int, steps: int, logging_steps: int) -> Callable[[], float]:
    """A run in so many processes; it returns samples per second and core after start-up."""
    config = run_config(folder, f"run-{count}", batch_size, steps=steps, logging_steps=logging_steps)
    path = folder / f"run-{count}.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
    command += ["-m", "fera.cli", "train", str(path), "--overwrite"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}

    def launch() -> float:
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
        samples = json.loads((config.output_dir / "summary.json").read_text(encoding="utf-8"))["samples"]
        if samples != steps * batch_size * count:
            raise RuntimeError(f"{count} processes saw {samples} samples: they have not found each other")
        lines = (config.output_dir / "log.jsonl").read_text(encoding="utf-8").splitlines()
        speeds = [record["samples_per_second"] for record in map(json.loads, lines) if "samples_per_second" in record]
        return statistics.median(speeds[1:]) / count

    return launch
