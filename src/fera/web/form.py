"""The form to train by: made from the typed configuration, so that a key that is added there is a field here."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel

from fera.config import TrainConfig
from fera.config.keys import Key, is_section, keys, toml_value
from fera.config.reading import load_config
from fera.errors import FeraError

# What people set for nearly every run; the rest is folded away until it is asked for.
MAIN = (
    *("base", "output_dir", "data.train_data_dir", "data.resolution", "data.instance_prompt", "data.trigger_word"),
    *("data.validation_fraction", "adapter.r", "adapter.num_experts", "adapter.num_bands", "train.steps"),
    *("train.batch_size", "train.learning_rate", "train.mixed_precision", "train.gradient_checkpointing"),
    *("validation.prompts", "validation.steps", "validation.loss_steps"),
)
_BRACKETED_LINK = re.compile(r" ?\(\[[^\]]*\]\([^)]*\)\)")
_LINK = re.compile(r"\[([^\]]*)\]\([^)]*\)")


@dataclass(frozen=True)
class Field:
    """A key as a field of the form.

    Args:
        name: dotted.
        kind: "bool", "choice", "number", "list", "table" or "text".
        help: what it means.
        takes: what it takes, in words.
        default: as TOML, "required" or "unset".
        value: what it is set to; empty where it is left alone.
        choices: of a "choice".
        is_required: whether it has no default.
        is_main: whether it is shown at once.
    """

    name: str
    kind: str
    help: str
    takes: str
    default: str
    value: str
    choices: tuple[str, ...]
    is_required: bool
    is_main: bool

    @property
    def label(self) -> str:
        """Its name inside its section."""
        return self.name.rpartition(".")[2]

    @property
    def section(self) -> str:
        """Its section; "run" for keys of none."""
        return self.name.rpartition(".")[0] or "run"


def form(values: Mapping[str, str]) -> dict[str, list[Field]]:
    """All fields by section.

    Args:
        values: texts by dotted name of what is set.
    """
    sections: dict[str, list[Field]] = {}
    for key in keys():
        field = _field(key, values.get(key.name, ""))
        sections.setdefault(field.section, []).append(field)
    return sections


def section_help() -> dict[str, str]:
    """What each section is about."""
    return {
        name: _plain((field.annotation.__doc__ or "").strip().splitlines()[0].partition("; [")[0])
        for name, field in TrainConfig.model_fields.items()
        if is_section(field) and field.annotation is not None
    }


def read_form(values: Mapping[str, Any]) -> TrainConfig:
    """The configuration that a form stands for.

    Args:
        values: texts by dotted name; empty ones are left at their defaults. A list has one item a line.

    Raises:
        FeraError: as `load_config`, or a value is no text.
    """
    known = {key.name: key for key in keys()}
    flags: dict[str, str | list[str]] = {}
    for name, text in values.items():
        if not isinstance(name, str) or not isinstance(text, str):
            raise FeraError("a form has texts alone; reload the page")
        text = text.replace("\r\n", "\n")
        if name in known and get_origin(known[name].type) is list:
            if lines := [line.strip() for line in text.split("\n") if line.strip()]:
                flags[name] = lines
        elif text.strip():
            flags[name] = text.strip()
    try:
        return load_config(None, flags)
    except FeraError as error:
        text = str(error).replace("flag --", "").replace("set it in the TOML file or by a flag", "fill it in")
        raise FeraError(text) from error


def values_of(config: TrainConfig) -> dict[str, str]:
    """Texts of the keys that differ from their defaults, as the form takes them."""
    return {key.name: _text(value) for key, value in changed(config)}


def to_short_toml(config: TrainConfig) -> str:
    """A configuration as TOML, without what is at its default."""
    tables: dict[str, list[str]] = {"": []}
    for key, value in changed(config):
        section, _, name = key.name.rpartition(".")
        tables.setdefault(section, []).append(f"{name} = {toml_value(value)}")
    parts = ["\n".join([f"[{name}]", *lines] if name else lines) for name, lines in tables.items() if lines]
    return "\n\n".join(parts) + "\n"


def changed(config: TrainConfig) -> list[tuple[Key, Any]]:
    """Keys that differ from their defaults, with their values, in order."""
    found = []
    for key in keys():
        value: Any = config
        for part in key.name.split("."):
            value = getattr(value, part)
        if key.field.is_required() or value != key.field.get_default(call_default_factory=True):
            found.append((key, value))
    return found


def presets() -> dict[str, Path]:
    """Configurations that come with fera, by name: those of the package, or of the checkout that it is run from."""
    installed = Path(str(files("fera.web"))) / "presets"
    folder = installed if installed.is_dir() else Path(__file__).parents[3] / "examples"
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def _plain(text: str) -> str:
    """Help without its links: it is written for pages of the docs too, which are not here."""
    return _LINK.sub(r"\1", _BRACKETED_LINK.sub("", text))


def _field(key: Key, value: str) -> Field:
    kind: str = "text"
    choices: tuple[str, ...] = ()
    if key.type is bool:
        kind, choices = "choice", ("true", "false")
    elif get_origin(key.type) is not None and get_origin(key.type) is not list and get_origin(key.type) is not dict:
        kind, choices = "choice", tuple(map(str, get_args(key.type)))
    elif get_origin(key.type) is list:
        kind = "list"
    elif get_origin(key.type) is dict:
        kind = "table"
    elif key.type in (int, float) and ", or " not in key.expects:
        kind = "number"
    default, is_required = key.default, key.field.is_required()
    about = _plain(key.field.description or "")
    return Field(key.name, kind, about, key.expects, default, value, choices, is_required, key.name in MAIN)


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "\n".join(
            one.model_dump_json(exclude_defaults=True) if isinstance(one, BaseModel) else str(one) for one in value
        )
    if isinstance(value, dict):
        return json.dumps(value)
    return str(value)
