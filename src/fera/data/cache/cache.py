"""The cache: entries by name, in shards or, where an earlier tree wrote them, in files of their own."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from fera.data.cache.shards import ShardReader, ShardWriter, entries_of
from fera.data.cache.store import read
from fera.errors import FeraError

_SUFFIX = ".safetensors"
# Kinds of entries, and what their shards are called.
_KINDS = {"latent": "latents", "text": "texts", "mask": "masks", "seen": "sights"}
# What entries that were read may take of memory.
_MEMORY_BYTES = 256 * 2**20


class Cache:
    """A folder of entries; looks at it when it is made.

    Args:
        folder: need not exist.
        say: told of a shard that cannot be used.
        memory: bytes of entries that are kept once they were read.

    Raises:
        FeraError: the folder cannot be read.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], memory: int = _MEMORY_BYTES) -> None:
        self.folder = folder
        self._say = say
        self._left = memory
        self._places: dict[str, str] = {}  # of each entry the name of its file
        self._kept: dict[str, dict[str, Tensor]] = {}
        self._looked: set[str] = set()
        self._reader = ShardReader()
        self.look()

    def look(self) -> None:
        """Find what has come into the folder since the last look.

        Raises:
            FeraError: the folder cannot be read.
        """
        try:
            with os.scandir(self.folder) as listing:
                files = sorted(entry.name for entry in listing if entry.name.endswith(_SUFFIX))
        except FileNotFoundError:
            return
        except OSError as error:
            raise FeraError(f"the cache {self.folder} cannot be read: {error.strerror or error}") from error
        kinds = {*_KINDS.values()}
        for file in files:
            kind = file.partition("-")[0]
            if kind in _KINDS:
                self._places.setdefault(file.removesuffix(_SUFFIX), file)
            elif kind in kinds and file not in self._looked:
                self._look_into(file)

    @property
    def names(self) -> list[str]:
        """All entries that were found and not forgotten."""
        return list(self._places)

    def missing(self, names: Iterable[str]) -> list[str]:
        """Those of some entries that are not there, each once, in order."""
        return [name for name in dict.fromkeys(names) if name not in self._places]

    def keep(self, names: Iterable[str]) -> None:
        """Forget where all other entries lie: a cache may hold those of many runs."""
        self._places = {name: self._places[name] for name in names if name in self._places}

    def writer(self, kind: str) -> ShardWriter:
        """Writes entries of a kind: "latent", "text", "mask" or "seen"."""
        return ShardWriter(self.folder, _KINDS[kind], self._note)

    def read(self, name: str) -> dict[str, Tensor]:
        """The tensors of an entry. They may lie in a file that is mapped: do not write into them.

        Raises:
            FeraError: its file was removed or damaged since it was written.
        """
        if name in self._kept:
            return self._kept[name]
        place = self._places.get(name)
        if place is None:
            raise FeraError(f"{self.folder} holds no {name} any more; start again to encode it anew")
        path = self.folder / place
        tensors = read(path) if place == name + _SUFFIX else self._read_shard(path, name)
        size = sum(tensor.nbytes for tensor in tensors.values())
        if size <= self._left:
            self._left -= size
            self._kept[name] = tensors
        return tensors

    def _read_shard(self, path: Path, name: str) -> dict[str, Tensor]:
        try:
            return self._reader.read(path, name)
        except (OSError, SafetensorError, ValueError) as error:
            raise FeraError(
                f"cached file {path} cannot be read ({error}); delete it and start again: what it held is encoded anew"
            ) from error

    def _look_into(self, file: str) -> None:
        self._looked.add(file)
        try:
            for name in entries_of(self.folder / file):
                self._places.setdefault(name, file)
        except (OSError, SafetensorError) as error:
            self._say(f"{self.folder / file} is damaged ({error}): what it held is encoded anew, and it can be deleted")

    def _note(self, path: Path, names: list[str]) -> None:
        self._looked.add(path.name)
        self._places.update(dict.fromkeys(names, path.name))
