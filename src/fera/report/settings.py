"""The run's settings, those that differ from the defaults marked."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from fera.config import TrainConfig
from fera.config.keys import keys, toml_value
from fera.config.reading import load_config
from fera.errors import FeraError


@dataclass(frozen=True)
class Setting:
    """One key of the run's configuration.

    Args:
        name: dotted.
        value: as a reader would write it; "unset" where there is none.
        default: likewise, or "required".
        is_changed: whether the run departs from the default.
        meaning: the meaning of the key.
    """

    name: str
    value: str
    default: str
    is_changed: bool
    meaning: str


def read_settings(path: Path) -> tuple[TrainConfig | None, list[Setting], str | None]:
    """Read config.toml, as far as it can be read.

    Args:
        path: the file.

    Returns:
        The configuration, its keys, and what is wrong with the file. A file that this fera would refuse, as one of
        another version may be, still gives its keys.
    """
    try:
        config = load_config(path)
    except FeraError as error:
        return None, _raw_settings(path), str(error)
    values = _flat(config)
    settings = []
    for key in keys():
        value = values[key.name]
        is_changed = key.field.is_required() or value != key.field.get_default(call_default_factory=True)
        settings.append(Setting(key.name, _text(value), key.default, is_changed, key.field.description or ""))
    return config, settings, None


def _raw_settings(path: Path) -> list[Setting]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return []
    return [Setting(name, _text(value), "", False, "") for name, value in _flat_table(table).items()]


def _flat(section: BaseModel, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in section:
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, BaseModel) else {prefix + name: value}
    return flat


def _flat_table(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in table.items():
        flat |= _flat_table(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _text(value: object) -> str:
    if value is None:
        return "unset"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(item) for item in value) or "none"
    if isinstance(value, BaseModel):
        return toml_value(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} = {_text(item)}" for name, item in value.items())
    return str(value)
