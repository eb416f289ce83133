"""What a result says about its machine, its code and its costs."""

import os
import platform
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from fera.method.router import gate_entropy
from fera.method.routing import Routing
from fera.version import __version__

_LIBRARIES = ("torch", "diffusers", "peft", "transformers", "accelerate", "numpy")
QUARTERS = 4


def code() -> dict[str, Any]:
    """Version of fera and, where it runs from a git checkout, the commit and whether files differ from it."""
    root = Path(__file__).resolve().parents[1]
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", str(root)) if commit else None
    return {"fera": __version__, "commit": commit, "changed": bool(changed) if commit else None}


def versions() -> dict[str, str]:
    """Of the libraries that numbers may depend on."""
    return {"python": platform.python_version()} | {name: version(name) for name in _LIBRARIES}


def hardware(device: torch.device) -> dict[str, Any]:
    """Processor, graphics card, threads and host."""
    return {
        "host": socket.gethostname(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    }


def restart_peak_memory(device: torch.device) -> None:
    """Count the most memory from here on, where the system can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: the peak of this process becomes its present size
    except OSError:
        pass


def peak_memory(device: torch.device) -> int | None:
    """Most memory since `restart_peak_memory`, in bytes: the device's, or resident on the processor."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _peak_of_process()


def gates_by_quarter(routings: Sequence[Routing], num_train_timesteps: int) -> list[dict[str, Any]] | None:
    """Mean gate and its entropy in each quarter of the noise process, noise to clean.

    Args:
        routings: the routings of forwards at many timesteps.
        num_train_timesteps: T.

    Returns:
        For each quarter the `use` of each expert (sums to 1), the mean `entropy` of a sample's gate and
        `use_entropy`, that of `use`, both in [0, 1], and the number of `samples`; None where nothing was routed.
    """
    rows: list[list[torch.Tensor]] = [[] for _ in range(QUARTERS)]
    for routing in routings:
        if routing.timestep is None:
            continue
        for timestep, gate in zip(routing.timestep.expand(len(routing.gates)).tolist(), routing.gates, strict=True):
            noise = min(max(float(timestep) / num_train_timesteps, 0.0), 1.0)
            rows[min(int((1 - noise) * QUARTERS), QUARTERS - 1)].append(gate.float())
    if not any(rows):
        return None
    return [_summary(torch.stack(gates)) if gates else {"samples": 0} for gates in rows]


def _summary(gates: torch.Tensor) -> dict[str, Any]:
    use = gates.mean(0)
    return {
        "use": use.tolist(),
        "entropy": float(gate_entropy(gates).mean()),
        "use_entropy": float(gate_entropy(use[None])[0]),
        "samples": len(gates),
    }


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _peak_of_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
