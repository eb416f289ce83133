"""Fingerprints of models, remembered by the files that hold them: a full cache is found without reading any weight."""

import json
import sqlite3
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.image_processing_utils import ImageProcessingMixin

from fera.adapters.text.encoders import tokenizer_of
from fera.data.index import stamp_of
from fera.support.sqlite import user_folder, work_in

_TABLES = "CREATE TABLE IF NOT EXISTS fingerprints (files TEXT PRIMARY KEY, fingerprint TEXT) WITHOUT ROWID;"


def user_fingerprints() -> "Fingerprints":
    """Those of this user, beside the index of pictures."""
    return Fingerprints(user_folder() / "models.sqlite")


class Fingerprints:
    """Fingerprints by files, in a SQLite file.

    Files are unchanged while their sizes and their times of modification and of status change are.

    Args:
        path: the file; made when something is noted.
        settled: seconds that files must be left alone before they are noted.
    """

    def __init__(self, path: Path, settled: float = 2.0) -> None:
        self._path, self._settled = path, settled

    def known(self, files: Sequence[Path], loaded: Any) -> str | None:
        """The fingerprint of what these files are loaded as; None where it is not known.

        Args:
            files: all files of a model.
            loaded: whatever else it depends on, as JSON has it: class, dtype, versions of libraries.
        """
        key = self._key(files, loaded)
        if key is None or not self._path.exists():
            return None

        def find(connection: sqlite3.Connection) -> str | None:
            rows = connection.execute("SELECT fingerprint FROM fingerprints WHERE files = ?", (key,))
            return next((str(row[0]) for row in rows), None)

        return work_in(self._path, _TABLES, find, None)

    def note(self, files: Sequence[Path], loaded: Any, fingerprint: str) -> None:
        """Remember a fingerprint, unless a file has just been written.

        Args:
            files: as `known` takes them.
            loaded: likewise.
            fingerprint: of what they are loaded as.
        """
        key = self._key(files, loaded)
        if key is None:
            return
        youngest = time.time_ns() - self._settled * 1e9
        if any(max(stamp_of(file)[1:]) >= youngest for file in files):
            return

        def write(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO fingerprints VALUES (?, ?)", (key, fingerprint))

        work_in(self._path, _TABLES, write, None)

    def _key(self, files: Sequence[Path], loaded: Any) -> str | None:
        try:
            stamps = [(str(file.absolute()), *stamp_of(file)) for file in files]
        except OSError:
            return None
        return blake2b(json.dumps([stamps, loaded]).encode(), digest_size=16).hexdigest() if stamps else None


def fingerprint(part: Any) -> str:
    """Hash of a model's weights and of how adapters in it are set, or of a tokenizer's vocabulary and limits.

    Of a processor, that of its tokenizer; of one of pictures, its settings.
    """
    if part is None:
        return "none"
    hashed = blake2b(digest_size=16)
    if isinstance(part, nn.Module):
        for name, tensor in sorted(part.state_dict().items()):
            hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            hashed.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        for name, module in part.named_modules():
            if isinstance(module, BaseTunerLayer):
                scales = sorted(getattr(module, "scaling", {}).items())
                hashed.update(repr((name, module.active_adapters, module.disable_adapters, scales)).encode())
        config: Any = part.config
        config = config if isinstance(config, dict) else config.to_dict()
        # Private entries say where the part was loaded from, not what it does.
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        hashed.update(json.dumps(settings, sort_keys=True, default=str).encode())
    elif isinstance(part, ImageProcessingMixin):
        hashed.update(part.to_json_string().encode())
    else:
        part = tokenizer_of(part)
        described = [type(part).__name__, part.model_max_length, sorted(part.get_vocab().items())]
        if template := getattr(part, "chat_template", None):
            described.append(template)
        hashed.update(json.dumps(described).encode())
    return hashed.hexdigest()
