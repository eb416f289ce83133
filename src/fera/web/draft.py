"""Edits of captions that are not saved yet: kept beside the queue, so that no crash and no closed tab loses them."""

import hashlib
import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fera.data.editing import CaptionFolder, write_captions
from fera.errors import FeraError
from fera.support.files import replace_text

# Steps that can be undone.
_MOST_STEPS = 100

Edits = dict[str, tuple[str, str]]
_Step = dict[str, tuple[str, str] | None]


class Draft:
    """Edits of one folder's captions. The files stay as they are until `save`. All methods take any thread.

    Args:
        path: the file of the draft.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mutex = threading.RLock()
        held = _read(path)
        self.version: int = held["version"]
        self._edits: Edits = held["edits"]
        self._steps: list[_Step] = held["steps"]
        self._saved: list[Edits] = held["saved"]

    @property
    def edits(self) -> Edits:
        """By the name of an entry, what its file has and what it is to have."""
        with self._mutex:
            return dict(self._edits)

    @property
    def can_undo(self) -> bool:
        """Whether there is a step to take back, or a save whose former captions are known."""
        return bool(self._steps or self._saved)

    def change(self, version: int, changes: Mapping[str, tuple[str, str]]) -> int:
        """Edit captions.

        Args:
            version: of the draft that the edit was made on.
            changes: by name, the caption that the file has and the one that it is to have.

        Returns:
            How many differ from what the draft had.

        Raises:
            FeraError: another page edited meanwhile, or the draft cannot be kept.
        """
        with self._mutex:
            self._check(version)
            new = {name: pair for name, pair in changes.items() if self._edits.get(name, (pair[0], pair[0])) != pair}
            if not new:
                return 0

            def edit() -> None:
                self._steps = [*self._steps, {name: self._edits.get(name) for name in new}][-_MOST_STEPS:]
                self._put({**new})

            self._do(edit)
            return len(new)

    def undo(self, version: int) -> str:
        """Take the last edit back; where there is none, take the last save back, as an edit that can be saved.

        Returns:
            What was done, in words.

        Raises:
            FeraError: there is nothing to undo, or as `change`.
        """
        with self._mutex:
            self._check(version)
            if not self.can_undo:
                raise FeraError("there is nothing to undo")
            if self._steps:
                step = self._steps[-1]

                def back() -> None:
                    self._steps = self._steps[:-1]
                    self._put(step)

                self._do(back)
                return f"{_captions(len(step))} as before"
            saved = self._saved[-1]

            def former() -> None:
                self._saved = self._saved[:-1]
                self._put({name: (new, old) for name, (old, new) in saved.items()})

            self._do(former)
            return f"{_captions(len(saved))} as before the last save; save again to write them"

    def discard(self, version: int) -> int:
        """Drop all edits; the files are as they were. One step of `undo` brings them back."""
        with self._mutex:
            return self.change(version, {name: (old, old) for name, (old, _) in self._edits.items()})

    def save(self, version: int, held: CaptionFolder) -> int:
        """Write the edited captions.

        Args:
            version: of the draft that was looked at.
            held: a fresh look at the folder.

        Returns:
            How many were written.

        Raises:
            FeraError: as `write_captions`; what was written is no longer in the draft, the rest is.
        """
        with self._mutex:
            self._check(version)
            edits: Edits = self._edits
            written: list[str] = []
            try:
                write_captions(held, edits, written.append)
            finally:
                if written:
                    self._saved = [*self._saved, {name: edits[name] for name in written}][-_MOST_STEPS:]
                    self._edits = {name: pair for name, pair in edits.items() if name not in written}
                    self._steps = []
                    self.version += 1
                    self._write()
            return len(written)

    def _put(self, step: Mapping[str, tuple[str, str] | None]) -> None:
        for name, pair in step.items():
            if pair is None or pair[0] == pair[1]:
                self._edits.pop(name, None)
            else:
                self._edits[name] = pair

    def _do(self, change: Callable[[], None]) -> None:
        """Change and keep; a change that cannot be kept is not made."""
        before = (dict(self._edits), self._steps, self._saved)
        change()
        self.version += 1
        try:
            self._write()
        except OSError as error:
            self._edits, self._steps, self._saved = before
            self.version -= 1
            raise FeraError(
                f"cannot keep this edit: {error.strerror or error}. Make room; your other edits are as they were"
            ) from error

    def _check(self, version: int) -> None:
        if version != self.version:
            raise FeraError("captions were edited on another page meanwhile: reload this one, nothing is lost")

    def _write(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        held = {"version": self.version, "edits": self._edits, "steps": self._steps, "saved": self._saved}
        replace_text(self._path, json.dumps(held, ensure_ascii=False))


class Drafts:
    """Drafts by folder.

    Args:
        folder: where they are kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._mutex = threading.Lock()
        self._drafts: dict[Path, Draft] = {}

    def of(self, data: Path) -> Draft:
        """The draft of a data folder, by its path without links."""
        with self._mutex:
            if data not in self._drafts:
                name = hashlib.sha256(str(data).encode()).hexdigest()[:16]
                self._drafts[data] = Draft(self._folder / f"{name}.json")
            return self._drafts[data]


def _captions(count: int) -> str:
    return "1 caption is" if count == 1 else f"{count:,} captions are"


def _read(path: Path) -> dict[str, Any]:
    """A draft's file; an empty draft where there is none that can be read."""
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
        return {
            "version": int(held["version"]),
            "edits": _edits(held["edits"]),
            "steps": [
                {str(name): None if pair is None else _pair(pair) for name, pair in step.items()}
                for step in held["steps"]
            ],
            "saved": [_edits(saved) for saved in held["saved"]],
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {"version": 0, "edits": {}, "steps": [], "saved": []}


def _edits(held: Mapping[str, Any]) -> Edits:
    return {str(name): _pair(pair) for name, pair in held.items()}


def _pair(pair: Any) -> tuple[str, str]:
    old, new = pair
    return str(old), str(new)
