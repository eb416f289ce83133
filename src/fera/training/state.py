"""The run's folder and its checkpoints: written whole or not at all, rotated, restored."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fera.errors import FeraError
from fera.training.config import TrainConfig

_STATE = "state.pt"
_FORMAT_VERSION = 1

# Step of a line of the log that a crash cut off.
_HALF_WRITTEN = 2**62

# What may differ between a run and its continuation. Everything else would make it another run.
_MAY_CHANGE = (
    "output_dir",
    "validation.",
    "data.cache_dir",
    "train.steps",
    "train.logging_steps",
    "train.checkpointing_steps",
    "train.checkpoints_total_limit",
    "train.gradient_checkpointing",
    "train.report_to",
    "train.logging_dir",
    "train.tracker_project_name",
    "push_to_hub",
    "hub_",
    "license",
)


@dataclass(frozen=True)
class RunFolder:
    """Where a run keeps what.

    Args:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.toml"

    @property
    def log(self) -> Path:
        """One JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def logs(self) -> Path:
        """Folder of TensorBoard's files, unless the configuration names another."""
        return self.path / "logs"

    @property
    def samples(self) -> Path:
        """Folder of pictures drawn along the way."""
        return self.path / "samples"

    @property
    def adapter(self) -> Path:
        """Folder of the finished adapter."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """Step that a checkpoint was saved after."""
        return int(checkpoint.name.removeprefix("step-"))

    @property
    def summary(self) -> Path:
        """Times, losses and versions as JSON."""
        return self.path / "summary.json"

    def check(self, *, resume: bool, overwrite: bool) -> Path | None:
        """Whether a run may start here; changes nothing.

        Args:
            resume: continue the run in the folder.
            overwrite: replace it.

        Returns:
            The checkpoint to continue from, or None for a new run.

        Raises:
            FeraError: the folder holds a run and neither is asked for, or there is nothing to continue.
        """
        if resume and overwrite:
            raise FeraError("resume and overwrite exclude each other: go on with the run, or replace it")
        if self.path.exists() and not self.path.is_dir():
            raise FeraError(f"output_dir {self.path} is a file; give a folder")
        if resume:
            checkpoint = self.latest_checkpoint()
            if checkpoint is None:
                raise FeraError(f"nothing to resume: no checkpoint in {self.checkpoints}; start anew with --overwrite")
            return checkpoint
        if not overwrite and (held := [path.name for path in self._entries() if path.exists()]):
            raise FeraError(
                f"{self.path} already holds a run ({', '.join(held)}). "
                "Go on with it by --resume, replace it by --overwrite, or choose another output_dir"
            )
        return None

    def begin(self, config: TrainConfig, config_text: str, *, resume: bool) -> None:
        """Make the folder ready; a former run in it is removed unless it goes on. The cache stays.

        Raises:
            FeraError: the folder cannot be written.
        """
        try:
            if not resume:
                for entry in self._entries():
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            self.config.write_text(config_text, encoding="utf-8")
        except OSError as error:
            raise FeraError(f"cannot write to output_dir {config.output_dir}: {error.strerror}") from error

    def last_logged(self) -> int:
        """The last step in the log; -1 where there is none."""
        if not self.log.exists():
            return -1
        steps = [_step_of(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return max((step for step in steps if step < _HALF_WRITTEN), default=-1)

    def latest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        found = self._all_checkpoints()
        return found[-1] if found else None

    def save_checkpoint(
        self, step: int, state: Mapping[str, Any], save_adapter: Callable[[Path], None], *, keep: int
    ) -> Path:
        """Write a checkpoint whole, then remove the oldest ones.

        Args:
            step: optimizer steps taken.
            state: tensors and plain values only.
            save_adapter: writes the adapter into a folder.
            keep: checkpoints to keep, this one included.

        Returns:
            The checkpoint's folder: `adapter/` and the state beside it.
        """
        final = self.checkpoints / f"step-{step:06d}"
        if not final.exists():
            temporary = self.checkpoints / f".{final.name}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            save_adapter(temporary / "adapter")
            torch.save({"format_version": _FORMAT_VERSION, "step": step, **state}, temporary / _STATE)
            for path in (*temporary.rglob("*"), temporary):
                _flush(path)
            temporary.rename(final)
            _flush(self.checkpoints)
        for old in self._all_checkpoints()[:-keep]:
            shutil.rmtree(old)
        return final

    def truncate_log(self, step: int) -> None:
        """Drop log lines after a step, so that a continued run does not log steps twice."""
        if not self.log.exists():
            return
        kept = [line for line in self.log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        self.log.write_text("".join(line + "\n" for line in kept), encoding="utf-8")

    def _entries(self) -> tuple[Path, ...]:
        return (self.config, self.log, self.logs, self.samples, self.adapter, self.checkpoints, self.summary)

    def _all_checkpoints(self) -> list[Path]:
        return sorted(path for path in self.checkpoints.glob("step-*") if (path / _STATE).is_file())


def load_state(checkpoint: Path, config: TrainConfig, data_digest: str) -> dict[str, Any]:
    """Read a checkpoint's state.

    Args:
        checkpoint: its folder.
        config: of the run that is to go on.
        data_digest: of its training data.

    Returns:
        What `RunFolder.save_checkpoint` was given, and "step".

    Raises:
        FeraError: it cannot be read, or belongs to other settings or data.
    """
    path = checkpoint / _STATE
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["format_version"] > _FORMAT_VERSION:
            raise FeraError(f"{checkpoint} was written by a newer fera; upgrade to resume it")
        changed = _changes(json.loads(state["config"]), config.model_dump(mode="json"))
    except FeraError:
        raise
    except Exception as error:  # a damaged file fails in many ways
        raise FeraError(f"checkpoint {path} cannot be read ({error}); remove {checkpoint} and resume") from error
    if changed:
        raise FeraError(f"cannot resume {checkpoint} with other settings: {'; '.join(changed)}")
    if state["data"] != data_digest:
        raise FeraError(f"cannot resume {checkpoint}: pictures or captions changed since; restore them, or start anew")
    return state


def _changes(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    old, new = _flat(before), _flat(now)
    return [
        f"{name} is {new.get(name)!r}, was {old.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(_MAY_CHANGE)
    ]


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return _HALF_WRITTEN


def _flush(path: Path) -> None:
    """Force a file or folder to disk, where the system can."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
