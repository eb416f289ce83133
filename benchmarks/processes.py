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
from benchmarks.setting import Setting
from benchmarks.trainers import run_config, style_folder
from fera.config.reading import to_toml


def races(setting: Setting) -> Iterator[Race]:
    """The emoji base; every process has a whole batch of its own. On the CPU in any setting."""
    size, steps, line = (1, 2, 1) if setting.small else (8, 30, 5)
    with style_folder(setting.small) as folder:
        yield Race(
            f"fera train per core, emoji base, batch {size} a process",
            {
                "2 processes": _launch(folder, 2, 1, size, steps, line),
                "1 process": _launch(folder, 1, 1, size, steps, line),
                "2 runs at once": _launch(folder, 1, 2, size, steps, line),
            },
            [
                Comparison("2 processes", "1 process", at_least=0.9),
                # What the machine makes of two processes that never wait for each other: the rest is gloo's.
                Comparison("2 runs at once", "1 process"),
                Comparison("2 processes", "2 runs at once"),
            ],
            rounds=3,
            warm_up=0,  # a run has its own: its first lines are not counted
            meter=REPORTED_SPEED,
        )


def _launch(folder: Path, processes: int, runs: int, size: int, steps: int, line: int) -> Callable[[], float]:
    """Runs at the same time in so many processes each; it returns samples per second and core after start-up."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    outputs, commands = [], []
    for number in range(runs):
        config = run_config(Setting(), folder, f"run-{processes}-{number}", size, steps=steps, logging_steps=line)
        path = folder / f"run-{processes}-{number}.toml"
        path.write_text(to_toml(config), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        commands.append([*command, "-m", "fera.cli", "train", str(path), "--overwrite"])
        outputs.append(config.output_dir)

    def launch() -> float:
        started = [
            subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            for command in commands
        ]
        for one, command in zip(started, commands, strict=True):
            _, errors = one.communicate()
            if one.returncode:
                raise RuntimeError(f"{' '.join(command)} failed:\n{errors}")
        return statistics.fmean(_speed(output, processes, size * steps) for output in outputs)

    return launch


def _speed(output: Path, processes: int, samples: int) -> float:
    """Samples per second and process after start-up, of a finished run."""
    seen = json.loads((output / "summary.json").read_text(encoding="utf-8"))["samples"]
    if seen != samples * processes:
        raise RuntimeError(f"{processes} processes saw {seen} samples: they have not found each other")
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    speeds = [record["samples_per_second"] for record in map(json.loads, lines) if "samples_per_second" in record]
    return statistics.median(speeds[1:]) / processes
