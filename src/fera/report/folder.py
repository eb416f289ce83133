"""Reading a run's folder: everything that is there, and a line about everything that cannot be used."""

import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.report.adapter import describe_adapter
from fera.report.examples import Pictures, read_pictures
from fera.report.log import Log, number, read_log
from fera.report.routing import read_curves
from fera.report.settings import Setting, read_settings
from fera.traces.curves import RoutingCurves
from fera.training.folder.run_folder import RunFolder


@dataclass(frozen=True)
class Run:
    """What a run's folder holds.

    Args:
        folder: where it keeps what.
        config: its configuration; None where there is none that this fera takes.
        settings: its keys.
        log: its log; empty where there is none.
        log_written: when the log was last written, in UTC; None where there is none.
        summary: the summary of a finished run; empty where there is none.
        adapter_path: folder of the adapter, or of the last checkpoint's; None where there is neither.
        adapter: facts about it by section.
        curves: gates and band shares along the denoising steps, as `fera demo` or `fera analyze` traced them.
        samples: pictures drawn along the way, oldest first.
        pictures: what it was trained on.
        problems: one line about each thing that is missing or damaged.
    """

    folder: RunFolder
    config: TrainConfig | None = None
    settings: list[Setting] = field(default_factory=list)
    log: Log = field(default_factory=lambda: Log([]))
    log_written: datetime | None = None
    summary: dict[str, Any] = field(default_factory=dict)
    adapter_path: Path | None = None
    adapter: dict[str, dict[str, Any]] = field(default_factory=dict)
    curves: list[RoutingCurves] = field(default_factory=list)
    samples: list[Path] = field(default_factory=list)
    pictures: Pictures = field(default_factory=Pictures)
    problems: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.path.resolve().name

    @property
    def total_steps(self) -> int | None:
        """How many steps it was to take."""
        if self.config is not None:
            return self.config.train.steps
        steps = number(self.summary.get("steps"))
        return None if steps is None else int(steps)

    @property
    def is_finished(self) -> bool:
        """Whether it came to its end."""
        return bool(self.summary)

    @property
    def is_routed(self) -> bool:
        """Whether it has a gate, as far as the folder tells."""
        scheme = self.adapter.get("settings", {}).get("num_experts")
        return self.log.num_experts > 0 or scheme is not None or bool(self.curves)

    def held_out(self) -> list[tuple[float, float]]:
        """Steps and held-out losses; of a run without a log what its summary says."""
        logged = [(step, loss) for step, loss in self.log.series("held_out_loss") if loss is not None]
        if logged:
            return logged
        ends = ((0, "held_out_loss_before"), (self.total_steps or 0, "held_out_loss_after"))
        return [(step, loss) for step, key in ends if (loss := number(self.summary.get(key))) is not None]


def read_run(path: Path) -> Run:
    """Read a run's folder.

    Args:
        path: the folder, as `fera train` or `fera demo` left it, finished or not.

    Returns:
        What is there. Nothing in it is trusted, and nothing that is damaged or missing is fatal.

    Raises:
        FeraError: there is no such folder, or nothing of a run in it.
    """
    folder = RunFolder(path)
    if not path.is_dir():
        raise FeraError(f"{path} is no run folder: there is no such folder")
    if not any(entry.exists() for entry in (folder.config, folder.log, folder.summary, folder.adapter)):
        raise FeraError(
            f"{path} is no run folder: there is no config.toml, log.jsonl, summary.json or adapter in it. "
            "Give the output_dir of a run of fera train or fera demo"
        )
    problems: list[str] = []
    config, settings, problem = read_settings(folder.config)
    problems += [problem] if problem else []
    log, written = _log(folder.log, problems)
    adapter_path = _adapter_path(folder, problems)
    adapter = describe_adapter(adapter_path, problems) if adapter_path is not None else {}
    return Run(
        folder=folder,
        config=config,
        settings=settings,
        log=log,
        log_written=written,
        summary=read_json(folder.summary, problems),
        adapter_path=adapter_path,
        adapter=adapter,
        curves=read_curves(path / "gates.csv", problems) or read_curves(path / "analysis" / "gates.csv", problems),
        samples=sorted(folder.samples.glob("step-*.png")),
        pictures=read_pictures(config, path, problems) if config is not None else Pictures(),
        problems=problems,
    )


def read_json(path: Path, problems: list[str]) -> dict[str, Any]:
    """A JSON object; empty, and a problem, where the file is something else; empty where there is none."""
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        problems.append(f"{path.name} cannot be read: {error}")
        return {}
    if not isinstance(value, dict):
        problems.append(f"{path.name} holds no JSON object")
        return {}
    return value


def _log(path: Path, problems: list[str]) -> tuple[Log, datetime | None]:
    try:
        log = read_log(path)
        written = datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except FileNotFoundError:
        problems.append("log.jsonl is missing: there are no curves")
        return Log([]), None
    except OSError as error:
        problems.append(f"log.jsonl cannot be read: {error.strerror or error}")
        return Log([]), None
    if log.bad_lines:
        lines = "1 line" if log.bad_lines == 1 else f"{log.bad_lines} lines"
        problems.append(f"log.jsonl: {lines} could not be read and are left out")
    return log, written


def _adapter_path(folder: RunFolder, problems: list[str]) -> Path | None:
    """The finished adapter, or that of the newest checkpoint."""
    if folder.adapter.is_dir():
        return folder.adapter
    checkpoint = folder.latest_checkpoint()
    if checkpoint is None:
        problems.append("there is no adapter and no checkpoint in the folder")
        return None
    problems.append(f"there is no finished adapter; this is the one of checkpoint {checkpoint.name}")
    return checkpoint / "adapter"
