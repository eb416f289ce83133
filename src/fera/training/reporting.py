"""What a run tells a person: a progress bar, messages, log.jsonl, and trackers."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from fera.files import os_errors
from fera.router import COLLAPSE, gate_entropy
from fera.strict_json import to_json
from fera.training.tracking import Trackers

# Seconds between lines where there is no terminal to draw a bar on.
_QUIET_SECONDS = 30.0


@dataclass
class Metrics:
    """What the samples of one or more steps came to, where it was computed: counting waits for no device.

    Args:
        losses: denoising losses, each of shape (B,).
        consistencies: consistency loss of the forward that a sample was in, each of shape (B,); empty where it is off.
        gates: each of shape (B, E); empty where nothing is routed.
        shares: of the noisy latents' energy by band, each of shape (B, K); empty where nothing is routed.
    """

    losses: list[Tensor] = field(default_factory=list)
    consistencies: list[Tensor] = field(default_factory=list)
    gates: list[Tensor] = field(default_factory=list)
    shares: list[Tensor] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """How many."""
        return sum(len(losses) for losses in self.losses)

    def add(self, losses: Tensor, consistency: Tensor | None, gates: Tensor | None, shares: Tensor | None) -> None:
        """Count a batch.

        Args:
            losses: shape (B,).
            consistency: scalar or None.
            gates: shape (B, E), or None where nothing is routed.
            shares: shape (B, K), or None where nothing is routed.
        """
        _append(self.losses, losses)
        if consistency is not None:
            _append(self.consistencies, consistency.expand(len(losses)))
        if gates is not None and shares is not None:
            _append(self.gates, gates)
            _append(self.shares, shares)

    def averages(self) -> dict[str, Any]:
        """Averages over the samples, as they are logged; nothing where there were none."""
        if not self.losses:  # all steps were skipped
            return {}
        averages: dict[str, Any] = {"loss": _mean(_all(self.losses))}
        if self.consistencies:
            averages["consistency"] = _mean(_all(self.consistencies))
        if self.gates:
            gates = _all(self.gates)
            averages["gate_entropy"] = _mean(gate_entropy(gates))
            averages["gates"] = [_mean(expert) for expert in gates.T]
        return averages

    def distributions(self) -> dict[str, Tensor]:
        """Values of each sample that trackers show as histograms: "gates" (N, E) and "bands" (N, K), on the CPU."""
        return {"gates": _all(self.gates), "bands": _all(self.shares)} if self.gates else {}


# From so many forwards on they are held as one tensor: on a GPU each takes half a kilobyte at least.
_APART = 256


def _append(parts: list[Tensor], part: Tensor) -> None:
    parts.append(part.detach())
    if len(parts) == _APART:
        parts[:] = [torch.cat([held.to(part.device) for held in parts])]  # restored ones are on the CPU


def _all(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.cpu() for part in parts]).double()


def _mean(values: Tensor) -> float:
    return _rounded(float(values.mean()))


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
        'others learn next to nothing. Lower train.router_lr_ratio, or set adapter.router_init = "partition"'
    )


class Reporter:
    """Console, log and trackers of a run; silent on all processes but the main one.

    Args:
        log: path of log.jsonl.
        is_main: whether this is the main process.
        quiet: show progress alone, without messages.
    """

    def __init__(self, log: Path, *, is_main: bool, quiet: bool = False) -> None:
        self._log = log
        self._quiet = quiet
        self._is_main = is_main
        self._trackers: Trackers | None = None
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
        if self._trackers is not None:
            self._trackers.finish()

    def track(self, trackers: Trackers) -> None:
        """Send to trackers too, from now on, what is written; they are finished with the reporter."""
        self._trackers = trackers

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

    def write(self, record: dict[str, Any], distributions: Mapping[str, Tensor] | None = None) -> None:
        """Append a line to log.jsonl, and send it to the trackers.

        Args:
            record: the line; has a "step".
            distributions: what the trackers get besides, as `Metrics.distributions` gives it.
        """
        if self._is_main:
            with os_errors(self._log), self._log.open("a", encoding="utf-8") as file:
                file.write(to_json(record) + "\n")
        if self._trackers is not None:
            self._trackers.log(record, distributions or {})

    def show(self, step: int, prompts: Sequence[str], images: Sequence[Image.Image]) -> None:
        """Send pictures to the trackers, one a prompt."""
        if self._trackers is not None:
            self._trackers.show(step, prompts, images)


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
