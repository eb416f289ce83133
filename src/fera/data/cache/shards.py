"""Shards of the cache: safetensors files that hold many entries each, mapped, and what their headers say of them.

An entry is a few tensors under one name, or none; a shard has them as `NAME/TENSOR`, and `NAME/` of one without any.
The headers are the index of a cache: they name all that a shard holds and are written with it at once, so they cannot
tell of another folder or an older file.
"""

import json
import time
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fera.data.cache.store import digest, owned, write
from fera.errors import FeraError

# A shard is written when it has so many entries or bytes, or when so many seconds of work wait for it.
_ENTRIES, _BYTES, _SECONDS = 1024, 64 * 2**20, 30.0
# Mappings that are open at a time: each holds what its header says.
_OPEN = 64
_CHECKSUMS = "crc32"


def entries_of(path: Path) -> Iterator[str]:
    """Names of the entries of a shard.

    Raises:
        OSError: there is none.
        SafetensorError: it is cut or damaged, as far as its header tells.
    """
    with safe_open(path, framework="pt") as file:
        yield from dict.fromkeys(name.partition("/")[0] for name in file.keys())  # noqa: SIM118


class ShardWriter:
    """Gathers entries and writes them as shards; what waits when its block is left is written too, whatever happened.

    Args:
        folder: the cache; made when there is something to write.
        kind: what the entries are; begins the names of the files.
        written: told the file and its entries whenever a shard is on disk.
    """

    def __init__(self, folder: Path, kind: str, written: Callable[[Path, list[str]], None]) -> None:
        self._folder, self._kind, self._written = folder, kind, written
        self._waiting: dict[str, dict[str, Tensor]] = {}
        self._bytes, self._since = 0, time.monotonic()

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        try:
            self.flush()
        except FeraError:
            if error is None:  # else what came first is what is told
                raise

    def add(self, name: str, tensors: dict[str, Tensor]) -> None:
        """Take an entry.

        Args:
            name: its name.
            tensors: what it is; rows of larger tensors are copied.

        Raises:
            FeraError: a shard cannot be written.
        """
        if not self._waiting:
            self._since = time.monotonic()
        self._waiting[name] = owned(tensors)
        self._bytes += sum(value.nbytes for value in tensors.values())
        is_full = len(self._waiting) >= _ENTRIES or self._bytes >= _BYTES
        if is_full or time.monotonic() - self._since >= _SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits.

        Raises:
            FeraError: it cannot be written; it is dropped.
        """
        entries, self._waiting, self._bytes = self._waiting, {}, 0
        if not entries:
            return
        held_of = {name: held or {"": torch.zeros(0)} for name, held in entries.items()}
        tensors = {f"{name}/{key}": value for name, held in held_of.items() for key, value in held.items()}
        sums = {name: _checksum(value) for name, value in tensors.items()}
        # Named by what is in it: processes that encode the same write the same file.
        path = self._folder / f"{self._kind}-{digest(sorted(entries))}.safetensors"
        write(path, tensors, {_CHECKSUMS: json.dumps(sums)})
        self._written(path, list(entries))


class ShardReader:
    """Reads entries of shards, a few of which stay mapped."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _Mapped] = OrderedDict()

    def read(self, path: Path, name: str) -> dict[str, Tensor]:
        """The tensors of an entry, which lie in the mapped file.

        Raises:
            OSError: the shard was removed.
            SafetensorError: it cannot be read, or does not hold the entry.
            ValueError: what it holds is not what was written.
        """
        if path not in self._open:
            self._open[path] = _Mapped(path)
            if len(self._open) > _OPEN:
                self._open.popitem(last=False)
        self._open.move_to_end(path)
        return self._open[path].read(name)


class _Mapped:
    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")
        self._sums: dict[str, int] = json.loads((self._file.metadata() or {}).get(_CHECKSUMS, "{}"))
        self._keys: dict[str, list[str]] = {}
        for key in self._file.keys():  # noqa: SIM118
            self._keys.setdefault(key.partition("/")[0], []).append(key)

    def read(self, name: str) -> dict[str, Tensor]:
        if name not in self._keys:
            raise SafetensorError(f"{name} is not in it")
        tensors = {key: self._file.get_tensor(key) for key in self._keys[name]}
        # Once each: after that the pages have been seen.
        if any(key in self._sums and self._sums.pop(key) != _checksum(value) for key, value in tensors.items()):
            raise ValueError(f"{name} in it is not what was written")
        return {key: value for full, value in tensors.items() if (key := full.partition("/")[2])}


def _checksum(tensor: Tensor) -> int:
    return zlib.crc32(tensor.reshape(-1).view(torch.uint8).numpy().data)
