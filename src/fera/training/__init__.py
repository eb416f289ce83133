"""Training: a configuration in, a folder with an adapter out.

`train` and its configuration are the interface; the rest is for whoever writes a training loop of their own.
"""

from typing import TYPE_CHECKING

from fera.config import AdapterConfig, DataConfig, OptimizationConfig, TrainConfig, ValidationConfig
from fera.config.reading import load_config, to_toml
from fera.support.lazy import lazy_names

if TYPE_CHECKING:
    from fera.training.run import train
    from fera.training.summary import Summary

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


# The run brings diffusers and accelerate; reading a configuration needs neither.
__getattr__ = lazy_names(__name__, {"train": "fera.training.run", "Summary": "fera.training.summary"})
