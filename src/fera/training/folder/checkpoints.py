"""A run's checkpoints: written whole or not at all, checked when read, rotated."""

import json
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from fera.errors import PROGRAMMING_ERRORS, FeraError
from fera.support.files import os_errors, sync
from fera.training.folder.manifest import damage_of, read_manifest, write_manifest

_STATE = "state.pt"
_CONFIG = "config.json"
_FORMAT_VERSION = 2


class Checkpoints:
    """The folder of a run's checkpoints, `step-000500/` and so on.

    A checkpoint holds `adapter/`, state and configuration beside it, and a manifest of them. A damaged one is named,
    passed over and left where it is: no rotation counts it, and only its owner removes it.

    Args:
        folder: need not exist.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def newest(self, say: Callable[[str], None] | None = None) -> Path | None:
        """The newest checkpoint that is whole.

        Args:
            say: hears of damaged ones that are newer.
        """
        for checkpoint in reversed(self._all()):
            damage = damage_of(checkpoint)
            if not damage:
                return checkpoint
            if say is not None:
                say(f"checkpoint {checkpoint} is damaged: {'; '.join(damage)}")
        return None

    def save(self, step: int, write: Callable[[Path], None], *, keep: int | None) -> Path:
        """Have a checkpoint written, whole or not at all, then remove the oldest ones.

        Args:
            step: optimizer steps taken.
            write: writes it to a folder, as `write_checkpoint` does.
            keep: checkpoints to keep, this one included; None keeps all.

        Returns:
            The checkpoint's folder.

        Raises:
            FeraError: it cannot be written. What was there before is untouched.
        """
        final = self._folder / f"step-{step:06d}"
        try:
            self.sweep()
            if not final.exists() or self._set_damaged_aside(final):
                temporary = self._folder / f".{final.name}.tmp"
                write(temporary)
                temporary.rename(final)
                sync(self._folder)
        except (OSError, FeraError) as error:
            with suppress(OSError):
                self.sweep()  # on a full disk half a checkpoint is in the way
            reason = error.strerror if isinstance(error, OSError) and error.strerror else error
            raise FeraError(f"checkpoint {final} cannot be written: {reason}") from error
        if keep is not None:
            self._rotate(keep)
        return final

    def sweep(self) -> None:
        """Remove what a crash left in the midst of writing or of removing.

        Raises:
            OSError: it cannot be removed.
        """
        for left in self._folder.glob(".step-*"):
            shutil.rmtree(left)

    def _all(self) -> list[Path]:
        """Checkpoints, damaged ones among them, oldest first."""
        found = [path for path in self._folder.glob("step-*") if re.fullmatch(r"step-\d+", path.name) and path.is_dir()]
        return sorted(found, key=lambda path: int(path.name.removeprefix("step-")))

    def _rotate(self, keep: int) -> None:
        whole = [checkpoint for checkpoint in self._all() if not damage_of(checkpoint)]
        for old in whole[:-keep]:
            # Out of sight first: breaking off here must not leave half a checkpoint that looks like a damaged one.
            away = old.with_name(f".{old.name}.old")
            with suppress(OSError):  # it is tried again after the next one
                old.rename(away)
                shutil.rmtree(away)

    def _set_damaged_aside(self, checkpoint: Path) -> bool:
        """Give a checkpoint another name if it is damaged; whether it was."""
        if not damage_of(checkpoint):
            return False
        names = (checkpoint.with_name(f"{checkpoint.name}.damaged-{number}") for number in range(1, 1000))
        checkpoint.rename(next(name for name in names if not name.exists()))
        return True


def read_state(checkpoint: Path) -> dict[str, Any]:
    """The state of a checkpoint that is whole.

    Args:
        checkpoint: its folder.

    Raises:
        FeraError: it cannot be read.
    """
    path = checkpoint / _STATE
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except PROGRAMMING_ERRORS:
        raise
    except Exception as error:  # a file that is none of ours fails in many ways
        raise FeraError(f"checkpoint {path} cannot be read ({error}); remove {checkpoint} and resume") from error


def read_config(checkpoint: Path) -> dict[str, Any]:
    """The configuration that a checkpoint was written with.

    Raises:
        FeraError: it cannot be read, or a newer fera wrote the checkpoint.
    """
    try:
        version = int(read_manifest(checkpoint)["format_version"])
        config = dict(json.loads((checkpoint / _CONFIG).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise FeraError(f"checkpoint {checkpoint} cannot be read ({error}); remove it and resume") from error
    if version > _FORMAT_VERSION:
        raise FeraError(f"{checkpoint} was written by a newer fera; upgrade to resume it")
    return config


def write_checkpoint(
    folder: Path,
    step: int,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    save_adapter: Callable[[Path], None],
) -> None:
    """Write a checkpoint's files to a new folder, and force them to disk.

    The arguments are those of `RunFolder.save_checkpoint`, but that the configuration is JSON-like here.

    Raises:
        OSError: they cannot be written.
    """
    folder.mkdir(parents=True)
    save_adapter(folder / "adapter")
    # Through a file of Python's: of what fails in a file of its own, torch does not tell the reason.
    with os_errors(folder / _STATE), (folder / _STATE).open("wb") as file:
        torch.save({"step": step, **state}, file)
    (folder / _CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_manifest(folder, {"format_version": _FORMAT_VERSION, "step": step})
    for path in (*folder.rglob("*"), folder):
        sync(path)
