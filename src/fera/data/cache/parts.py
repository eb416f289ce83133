"""Parts of a pipeline that come when there is something to encode."""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn


class Parts(Protocol):
    """How parts of a pipeline come that wait in their files."""

    def using(self, names: Iterable[str]) -> AbstractContextManager[None]:
        """Parts with their weights inside the block; those that waited before it wait again after it."""

    def files(self, name: str) -> list[Path]:
        """Files that a part is loaded from, as it is; none where they are not known."""


def move(parts: Iterable[Any], device: torch.device) -> None:
    """Move those of some parts to a device that have weights."""
    for part in parts:
        if isinstance(part, nn.Module):
            part.to(device)
