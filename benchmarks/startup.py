"""Start-up: what commands and imports take before they work, as CPU seconds of a fresh process.

Each contestant is a process of its own. They are compared with the same of another checkout, where the environment
variable FERA_BEFORE names its `src` folder, and with `import peft`, which any use of an adapter needs:

    git worktree add runs/before COMMIT
    FERA_BEFORE=runs/before/src python -m benchmarks startup
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from peft import inject_adapter_in_model

import fera
from benchmarks.contestants import emoji_unet
from benchmarks.meters import REPORTED_SECONDS, Clock
from benchmarks.race import Comparison, Race
from benchmarks.setting import Setting
from fera import FeraConfig

_SOURCE = Path(fera.__file__).parents[1]


def races(setting: Setting) -> Iterator[Race]:
    """A race a command."""
    with tempfile.TemporaryDirectory() as folder:
        adapter, pictures = _adapter(Path(folder), setting), _pictures(Path(folder))
        commands: dict[str, tuple[list[str], float | None]] = {
            "import fera": (["-c", "import fera"], 0.02),
            "fera --help": (["-m", "fera.cli", "--help"], 0.05),
            "fera --version": (["-m", "fera.cli", "--version"], 0.05),
            "fera train --help": (["-m", "fera.cli", "train", "--help"], 0.05),
            "fera config": (["-m", "fera.cli", "config"], 0.05),
            "fera inspect": (["-m", "fera.cli", "inspect", str(adapter)], 0.15),
            "fera data check": (["-m", "fera.cli", "data", "check", str(pictures)], None),
        }
        for name, (arguments, goal) in commands.items():
            contestants = {"now": process(arguments), "import peft": process(["-c", "import peft"])}
            comparisons = [Comparison("now", "import peft")]
            if before := os.environ.get("FERA_BEFORE"):
                contestants["before"] = process(arguments, Path(before).resolve())
                comparisons.insert(0, Comparison("now", "before", at_most=goal))
            rounds = 1 if setting.small else 7
            yield Race(
                name, contestants, comparisons, rounds, warm_up=0 if setting.small else 1, meter=REPORTED_SECONDS
            )


def process(arguments: list[str], source: Path = _SOURCE, cache: Path | None = None) -> Callable[[Clock], float]:
    """Runs Python with the fera of a source folder, and returns the CPU seconds that it took.

    Args:
        arguments: of Python.
        source: a checkout's `src`.
        cache: what is known of pictures from earlier processes; nothing when left out.
    """

    def run(clock: Clock) -> float:
        with tempfile.TemporaryDirectory() as empty:
            kept = {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1", "FERA_CACHE": str(cache or empty)}
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *arguments], env=os.environ | kept, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    return run


def _adapter(folder: Path, setting: Setting) -> Path:
    unet = emoji_unet(setting)
    inject_adapter_in_model(FeraConfig(), unet, "default")
    fera.save_adapter(unet, folder / "adapter")
    return folder / "adapter"


def _pictures(folder: Path) -> Path:
    """A hundred pictures of a bundled style, with captions."""
    train = fera.demo.unpack_style(fera.demo.STYLES[0], folder / "style") / "train"
    lines = (train / "metadata.jsonl").read_text(encoding="utf-8").splitlines()[:100]
    few = folder / "pictures"
    few.mkdir()
    for line in lines:
        name = json.loads(line)["file_name"]
        (few / name).parent.mkdir(parents=True, exist_ok=True)
        (few / name).write_bytes((train / name).read_bytes())
    (few / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return few
