"""The training configuration: one typed definition, one file a section.

TOML keys, dotted flags, `--help`, validation and docs/configuration.md all come from these classes. How they are
read and written is in `fera.config.reading`.
"""

from fera.config.adapter import AdapterConfig, PlainValue
from fera.config.data import DataConfig
from fera.config.optimization import OptimizationConfig, OptimizerValue
from fera.config.run import TrainConfig
from fera.config.text import TextEncoderConfig, TokensConfig
from fera.config.validation import ValidationConfig

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
