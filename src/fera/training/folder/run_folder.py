"""The run's folder: what lies where, and whether a run may start or go on in it."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.support.files import replace_file, replace_text, sync
from fera.training.folder.checkpoints import Checkpoints, write_checkpoint

# Step of a line of the log that a crash cut off.
_HALF_WRITTEN = 2**62


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

    @property
    def stages(self) -> Path:
        """The stages of the run as JSON, in a run that has some."""
        return self.path / "stages.json"

    @property
    def stages_picture(self) -> Path:
        """The graph of the stages, where distances chose their order."""
        return self.path / "stages.png"

    @staticmethod
    def step_of(checkpoint: Path) -> int:
        """Step that a checkpoint was saved after."""
        return int(checkpoint.name.removeprefix("step-"))

    @property
    def summary(self) -> Path:
        """Times, losses and versions as JSON."""
        return self.path / "summary.json"

    def check(self, *, resume: bool, overwrite: bool, say: Callable[[str], None] = lambda line: None) -> Path | None:
        """Whether a run may start here; changes nothing.

        Args:
            resume: continue the run in the folder.
            overwrite: replace it.
            say: hears which checkpoints are passed over because they are damaged.

        Returns:
            The checkpoint to continue from, the newest that is whole; None for a run that starts at its beginning, also
            where `resume` finds one that was broken off before its first checkpoint.

        Raises:
            FeraError: the folder holds a run and neither is asked for, or there is nothing to continue.
        """
        if resume and overwrite:
            raise FeraError("resume and overwrite exclude each other: go on with the run, or replace it")
        if self.path.exists() and not self.path.is_dir():
            raise FeraError(f"output_dir {self.path} is a file; give a folder")
        if resume:
            return self._to_continue(say)
        if not overwrite and (held := [path.name for path in self._entries() if path.exists()]):
            raise FeraError(
                f"{self.path} already holds a run ({', '.join(held)}). "
                "Go on with it by `resume`, replace it by `overwrite`, or choose another output_dir"
            )
        return None

    def _to_continue(self, say: Callable[[str], None]) -> Path | None:
        damaged: list[str] = []
        checkpoint = Checkpoints(self.checkpoints).newest(damaged.append)
        if checkpoint is None and damaged:
            raise FeraError(
                f"nothing to resume: no checkpoint in {self.checkpoints} is whole. {'; '.join(damaged)}. "
                "Put a copy back, or start anew with `overwrite`"
            )
        if checkpoint is None:
            if self.config.exists() and not (self.adapter.exists() or self.summary.exists()):
                say(f"the run in {self.path} has no checkpoint yet; it starts at its beginning")
                return None
            raise FeraError(
                f"nothing to resume: no checkpoint in {self.checkpoints}; leave `resume` out, or start anew with "
                "`overwrite`"
            )
        for line in damaged:
            say(f"{line}. It stays where it is; the run goes on from the one before")
        return checkpoint

    def begin(self, config_text: str, *, resume: bool) -> None:
        """Make the folder ready; a former run in it is removed unless it goes on. The cache stays.

        Raises:
            FeraError: the folder cannot be written.
        """
        try:
            if not resume:
                # What a resumed run would look for goes first, so that breaking off here leaves none of it.
                for entry in (self.checkpoints, *self._entries()):
                    shutil.rmtree(entry) if entry.is_dir() else entry.unlink(missing_ok=True)
            self._sweep()
            self.path.mkdir(parents=True, exist_ok=True)
            replace_text(self.config, config_text)
            self.checkpoints.mkdir(exist_ok=True)
        except OSError as error:
            raise FeraError(f"cannot write to output_dir {self.path}: {error.strerror}") from error

    def last_logged(self) -> int:
        """The last step in the log; -1 where there is none."""
        if not self.log.exists():
            return -1
        steps = [_step_of(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return max((step for step in steps if step < _HALF_WRITTEN), default=-1)

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint that is whole."""
        return Checkpoints(self.checkpoints).newest()

    def kept(self) -> str:
        """What a run that breaks off can go on from, for messages."""
        checkpoint = self.latest_checkpoint()
        if checkpoint is None:
            return "No checkpoint was saved before"
        return f"The last good checkpoint is {checkpoint}; go on from it by: fera train {self.config} --resume"

    def save_checkpoint(
        self,
        step: int,
        config: TrainConfig,
        state: Mapping[str, Any],
        save_adapter: Callable[[Path], None],
        *,
        keep: int | None,
    ) -> Path:
        """Write a checkpoint whole, then remove the oldest ones.

        Args:
            step: optimizer steps taken.
            config: the configuration of the run.
            state: tensors and plain values only.
            save_adapter: writes the adapter into a folder.
            keep: checkpoints to keep, this one included; None keeps all.

        Returns:
            The checkpoint's folder.

        Raises:
            FeraError: it cannot be written. The older ones are as they were.
        """
        if self.log.exists():
            sync(self.log)  # of the steps behind a checkpoint, no line may be missing
        state = {**state, "log_bytes": self.log.stat().st_size if self.log.exists() else 0}
        settings = config.model_dump(mode="json")

        def write(folder: Path) -> None:
            write_checkpoint(folder, step, settings, state, save_adapter)

        try:
            return Checkpoints(self.checkpoints).save(step, write, keep=keep)
        except FeraError as error:
            raise FeraError(f"{error}. {self.kept()}") from error

    def cut_log(self, length: int) -> None:
        """Bring the log back to where it was at a checkpoint, so that a continued run logs no step twice.

        Args:
            length: the length of the log at the checkpoint, in bytes.
        """
        if not self.log.exists():
            return
        kept = self.log.read_bytes()[:length]
        whole = kept[: kept.rfind(b"\n") + 1]
        replace_file(self.log, lambda file: file.write_bytes(whole))

    def _sweep(self) -> None:
        """Remove half-written files that a killed run left."""
        Checkpoints(self.checkpoints).sweep()
        for folder in (self.path, self.adapter, self.samples):
            for left in folder.glob(".*.tmp"):
                shutil.rmtree(left) if left.is_dir() else left.unlink()

    def _entries(self) -> tuple[Path, ...]:
        stages = (self.stages, self.stages_picture)
        return (self.config, self.log, self.logs, self.samples, self.adapter, self.checkpoints, self.summary, *stages)


def _step_of(line: str) -> int:
    try:
        return int(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return _HALF_WRITTEN
