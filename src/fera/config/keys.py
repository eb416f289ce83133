"""The keys of a configuration: what the command line and the reference page say of each."""

import json
import re
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fera.config import TrainConfig


@dataclass(frozen=True)
class Key:
    """One key of the configuration.

    Args:
        name: dotted, as in flags: "train.steps".
        field: its definition.
    """

    name: str
    field: FieldInfo

    @property
    def type(self) -> Any:
        """Its type without None; of several, the first."""
        first = self._members[0]
        return get_args(first)[0] if get_origin(first) is Annotated else first

    @property
    def is_optional(self) -> bool:
        """Whether it can be unset."""
        return type(None) in _union_members(self.field.annotation)

    @property
    def holds_tables(self) -> bool:
        """Whether it is a list of tables with keys of their own."""
        inner = (*get_args(self.type), None)[0]
        return get_origin(self.type) is list and isinstance(inner, type) and issubclass(inner, BaseModel)

    @property
    def inner_keys(self) -> list[str]:
        """Keys of the tables that it holds; none where it holds none."""
        return list(get_args(self.type)[0].model_fields) if self.holds_tables else []

    @property
    def expects(self) -> str:
        """What it takes, in words: "integer, at least 1"."""
        if get_origin(self.type) is dict:
            return "table"
        if get_origin(self.type) is Literal:
            return "one of " + ", ".join(str(choice) for choice in get_args(self.type))
        words = {bool: "true or false", int: "integer", float: "number", str: "text", Path: "path"}
        if get_origin(self.type) is list and get_origin(get_args(self.type)[0]) is Literal:
            return "list of " + ", ".join(str(choice) for choice in get_args(get_args(self.type)[0]))
        if self.type == list[int]:
            return "list of integers"
        if self.type == list[float]:
            return "list of numbers"
        if self.holds_tables:
            return "list of tables"
        parts = [words.get(self.type, "list of texts"), *_limits(self.field.metadata)]
        for member in self._members:
            if get_origin(member) is Annotated:
                parts += _limits(rule for field in get_args(member)[1:] for rule in field.metadata)
            elif get_origin(member) is Literal:
                parts += [f"or {choice}" for choice in get_args(member)]
        return ", ".join(parts)

    @property
    def _members(self) -> list[Any]:
        return [member for member in _union_members(self.field.annotation) if member is not type(None)]

    @property
    def default(self) -> str:
        """Its default as TOML, "required" or "unset"."""
        if self.field.is_required():
            return "required"
        return "unset" if self.field.default is None else toml_value(self.field.default)


def keys(model: type[BaseModel] = TrainConfig, prefix: str = "") -> Iterator[Key]:
    """All keys of the configuration in order, sections flattened to dotted names."""
    for name, field in model.model_fields.items():
        if is_section(field):
            yield from keys(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
        else:
            yield Key(prefix + name, field)


def _limits(rules: Iterable[Any]) -> list[str]:
    """Limits of a number in words."""
    words = {"gt": "above {}", "ge": "at least {}", "lt": "below {}", "le": "at most {}"}
    return [text.format(getattr(rule, name)) for rule in rules for name, text in words.items() if hasattr(rule, name)]


def _union_members(annotation: Any) -> tuple[Any, ...]:
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return get_args(annotation) if is_union else (annotation,)


def is_section(field: FieldInfo) -> bool:
    """Whether a field holds a section, with keys of its own."""
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def toml_value(value: Any) -> str:
    """A value as TOML takes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, BaseModel):
        value = {name: item for name, item in value if item != type(value).model_fields[name].default}
    if isinstance(value, dict):
        items = ", ".join(f"{toml_key(key)} = {toml_value(item)}" for key, item in value.items())
        return f"{{ {items} }}" if items else "{}"
    if isinstance(value, int | float):
        return repr(value)
    # JSON's escapes are a part of TOML's, but for DEL and for characters that JSON writes as surrogate pairs.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def toml_key(key: str) -> str:
    """A key as TOML takes it: with a dot in it, bare, it would be a table in a table."""
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else toml_value(key)
