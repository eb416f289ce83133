"""The training configuration: one typed definition, one file a section.

TOML keys, dotted flags, `--help`, validation and docs/configuration.md all come from these classes. How they are
read and written is in `fera.training.settings`.
"""

from fera.training.config.adapter import AdapterConfig, PlainValue
from fera.training.config.data import DataConfig
from fera.training.config.optimization import OptimizationConfig, OptimizerValue
from fera.training.config.run import TrainConfig
from fera.training.config.text import TextEncoderConfig, TokensConfig
from fera.training.config.validation import ValidationConfig

__all__ = [
    "AdapterConfig",
    "DataConfig",
    "OptimizationConfig",
    "OptimizerValue",
    "PlainValue",
    "TextEncoderConfig",
    "TokensConfig",
    "TrainConfig",
    "ValidationConfig",
]
