"""What a cache holds, for tests."""

from pathlib import Path

from torch import Tensor

from fera.data.cache.cache import Cache


def entries(folder: Path, kind: str = "") -> dict[str, dict[str, Tensor]]:
    """Entries of a cache by name, of a kind ("latent", "text", "mask") or all."""
    cache = Cache(folder, print)
    return {name: cache.read(name) for name in cache.names if name.startswith(kind)}
