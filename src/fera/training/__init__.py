"""Training: a configuration in, a folder with an adapter out.

`train` and its configuration are the interface; the rest is for whoever writes a training loop of their own.
"""

from typing import TYPE_CHECKING, Any

from fera.training.config import AdapterConfig, DataConfig, OptimizationConfig, TrainConfig, ValidationConfig
from fera.training.settings import load_config, to_toml

if TYPE_CHECKING:
    from fera.training.loop import Summary, train

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "OptimizationConfig",
    "Summary",
    "TrainConfig",
    "ValidationConfig",
    "load_config",
    "to_toml",
    "train",
]


def __getattr__(name: str) -> Any:
    # The loop brings diffusers and accelerate; reading a configuration needs neither.
    if name in ("train", "Summary"):
        from fera.training import loop

        return getattr(loop, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
