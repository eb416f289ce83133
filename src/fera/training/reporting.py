"""What a run tells a person: a progress bar, messages, and log.jsonl."""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fera.files import os_errors
from fera.router import COLLAPSE, gate_entropy

# Seconds between lines where there is no terminal to draw a bar on.
_QUIET_SECONDS = 30.0


@dataclass
class Metrics:
    """Sums over the samples of one or more steps.

    Args:
        samples: how many.
        losses: sum of their denoising losses.
        consistencies: sum of the consistency losses, each times its samples; None where it is off.
        gates: sum of their gates, shape (E,); a scalar where nothing is routed.
        entropies: sum of the entropies of their gates, each in [0, 1].
    """

    samples: int = 0
    losses: float = 0.0
    consistencies: float | None = None
    gates: Tensor = field(default_factory=lambda: torch.zeros(()))
    entropies: float = 0.0

    def add(self, losses: Tensor, consistency: Tensor | None, gates: Tensor | None) -> None:
        """Count a batch.

        Args:
            losses: shape (B,).
            consistency: scalar or None.
            gates: shape (B, E), or None where nothing is routed.
        """
        self.samples += len(losses)
        self.losses += float(losses.detach().sum())
        if consistency is not None:
            self.consistencies = (self.consistencies or 0.0) + float(consistency.detach()) * len(losses)
        if gates is not None:
            self.gates = self.gates + gates.sum(dim=0)
            self.entropies += float(gate_entropy(gates).sum())

    def averages(self) -> dict[str, Any]:
        """Averages over the samples, as they are logged; nothing where there were none."""
        if not self.samples:  # all steps were skipped
            return {}
        averages: dict[str, Any] = {"loss": _rounded(self.losses / self.samples)}
        if self.consistencies is not None:
            averages["consistency"] = _rounded(self.consistencies / self.samples)
        if self.gates.ndim:
            averages["gate_entropy"] = _rounded(self.entropies / self.samples)
            averages["gates"] = [_rounded(gate / self.samples) for gate in self.gates.tolist()]
        return averages


def collapse(averages: dict[str, Any]) -> str | None:
    """A line about a router that answers with one expert alone, or None.

    Args:
        averages: as `Metrics.averages` gives them.
    """
    gates = averages.get("gates", [])
    if len(gates) < 2 or max(gates) < COLLAPSE:
        return None
    expert = gates.index(max(gates))
    return (
        f"the router has collapsed: expert {expert + 1} of {len(gates)} holds {gates[expert]:.2f} of the gate, the "
        'others learn next to nothing. Lower train.router_learning_rate, or set adapter.router_init = "partition"'
    )


class Reporter:
    """Console and log of a run; silent on all processes but the main one.

    Args:
        log: path of log.jsonl.
        is_main: whether this is the main process.
        quiet: show progress alone, without messages.
    """

    def __init__(self, log: Path, *, is_main: bool, quiet: bool = False) -> None:
        self._log = log
        self._quiet = quiet
        self._is_main = is_main
        self._console = Console(stderr=True, quiet=not is_main, highlight=False)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[details]}"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        self._tasks: dict[str, Any] = {}
        self._last_line = time.monotonic()

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()

    def say(self, message: str) -> None:
        """Print a line."""
        if not self._quiet:
            self._print(message)

    def advance(self, what: str, done: int, total: int, details: str = "") -> None:
        """Move the bar of one kind of work; it goes away when all is done."""
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, completed=done, details=details)
        self._progress.update(self._tasks[what], completed=done, total=total, details=details)
        if done >= total:
            self._progress.remove_task(self._tasks.pop(what))
        is_due = time.monotonic() - self._last_line > _QUIET_SECONDS
        if not self._console.is_terminal and is_due:
            self._last_line = time.monotonic()
            self._print(f"{what} {done}/{total} {details}")

    def _print(self, message: str) -> None:
        self._console.print(message, markup=False, soft_wrap=True)

    def write(self, record: dict[str, Any]) -> None:
        """Append a line to log.jsonl."""
        if self._is_main:
            with os_errors(self._log), self._log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


def in_words(averages: dict[str, Any], samples_per_second: float) -> str:
    """Averages for the progress bar."""
    parts = [f"loss {averages['loss']:.4f}"] if "loss" in averages else []
    if "consistency" in averages:
        parts.append(f"consistency {averages['consistency']:.4f}")
    if "gate_entropy" in averages:
        parts.append(f"gate entropy {averages['gate_entropy']:.2f}")
    parts.append(f"{samples_per_second:.1f} samples/s")
    return " · ".join(parts)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")
