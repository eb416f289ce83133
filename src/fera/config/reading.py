"""Reading and writing the training configuration: TOML, flags, help and the reference page."""

import json
import tomllib
from collections.abc import Mapping, Sequence, Set
from pathlib import Path
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError

from fera.config import TrainConfig
from fera.config.foreign_keys import word_for
from fera.config.keys import Key, is_section, keys, toml_value
from fera.errors import FeraError
from fera.support.hints import did_you_mean, hint, nearest

_CONFIG_BYTES = 2**20
_PATHS = ("data.source_path", "data.stages", "validation.sources", "validation.masks")
_PATHS_OR_IDS = ("base", "data.dataset_name", "adapter.start_from")


def load_config(path: Path | str | None = None, flags: Mapping[str, str | Sequence[str]] | None = None) -> TrainConfig:
    """Read a configuration from a TOML file and flags; flags win.

    Relative paths in either are relative to the working directory.

    Args:
        path: the TOML file; None takes everything from the flags.
        flags: dotted key to its text, or texts for a list.

    Returns:
        The configuration, complete and valid.

    Raises:
        FeraError: the file cannot be read, or a key is unknown, missing, or of wrong type or range.
    """
    source = "the flags" if path is None else str(path)
    settings = {} if path is None else _read_toml(Path(path))
    known = {key.name: key for key in keys()}
    for name, text in (flags or {}).items():
        if name not in known:
            raise FeraError(f"unknown key {name!r}{_hint(name, list(known))}")
        _put(settings, name, _from_text(known[name], text), source)
    return parse_config(settings, source, set(flags or ()))


def parse_config(settings: Mapping[str, Any], source: str, flags: Set[str] = frozenset()) -> TrainConfig:
    """A configuration from its settings.

    Args:
        settings: nested, as a TOML file holds them.
        source: where they come from, for messages.
        flags: dotted names of those that flags gave.

    Raises:
        FeraError: a key is unknown, missing, or of wrong type or range.
    """
    try:
        return TrainConfig.model_validate(settings)
    except ValidationError as error:
        raise FeraError(_describe(error, source, flags)) from None


def to_toml(config: TrainConfig) -> str:
    """The whole configuration as TOML, defaults included, unset keys left out."""
    top, sections = [], []
    for name, value in config:
        if isinstance(value, BaseModel):
            lines = [f"{key} = {toml_value(item)}" for key, item in value if item is not None]
            sections.append("\n".join([f"[{name}]", *lines]))
        elif value is not None:
            top.append(f"{name} = {toml_value(value)}")
    return "\n\n".join(["\n".join(top), *sections]) + "\n"


def shareable_settings(config: TrainConfig) -> dict[str, Any]:
    """Settings by dotted name that may leave the machine: those that are set, without paths.

    A base or dataset that lies in a folder here is left out, whatever that folder is called.
    """
    shared: dict[str, Any] = {}
    for key in keys():
        value: Any = config
        for part in key.name.split("."):
            value = getattr(value, part)
        is_local = key.name in _PATHS_OR_IDS and value is not None and _is_local(value)
        is_private = is_local or isinstance(value, Path) or key.name in _PATHS
        if value is not None and not is_private:
            shared[key.name] = value
    return shared


def _is_local(path_or_id: str) -> bool:
    path = Path(path_or_id.partition("|")[0])  # of a file and where its configuration comes from
    return path.is_absolute() or path.exists()


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_BYTES:
            raise FeraError(f"{path} has more than {_CONFIG_BYTES:,} bytes; a configuration is a small TOML file")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot read the configuration {path}: {error.strerror}") from None
    except RecursionError:
        raise FeraError(f"{path} is nested too deeply to be a configuration") from None
    except UnicodeDecodeError:
        raise FeraError(f"{path} is not UTF-8 text; a configuration is a TOML file") from None
    except FeraError:
        raise
    except ValueError as error:  # also a number of thousands of digits
        raise FeraError(f"{path} is not valid TOML: {error}") from None


def _put(settings: dict[str, Any], name: str, value: Any, source: str) -> None:
    *sections, last = name.split(".")
    for section in sections:
        settings = settings.setdefault(section, {})
        if not isinstance(settings, dict):
            raise FeraError(f"{section!r} in {source} must be a table: [{section}]")
    settings[last] = value


def _from_text(key: Key, text: str | Sequence[str]) -> Any:
    """The value that a flag's text stands for; text that stands for none is left to validation to refuse."""
    if key.holds_tables:
        return [_table(word) for word in ([text] if isinstance(text, str) else text)]
    if not isinstance(text, str):
        return [_number(word) for word in text] if _holds_integers(key) else list(text)
    if key.is_optional and text.lower() == "none":
        return None
    if key.type is bool:
        return {"true": True, "false": False}.get(text.lower(), text)
    if key.type in (int, float) or get_origin(key.type) is dict:
        try:
            return json.loads(text) if get_origin(key.type) is dict else key.type(text)
        except ValueError:
            return text
    return text


def _holds_integers(key: Key) -> bool:
    """Whether it is a list of integers."""
    (inner,) = get_args(key.type)[:1] or (str,)
    return get_origin(key.type) is list and (get_args(inner) or (inner,))[0] is int


def _table(word: str) -> Any:
    """A table, written as JSON; validation refuses what is none."""
    try:
        return json.loads(word)
    except ValueError:
        return word


def _number(word: str) -> int | str:
    """An integer; validation refuses what is none."""
    try:
        return int(word)
    except ValueError:
        return word


def _describe(error: ValidationError, source: str, flags: Set[str]) -> str:
    problems = [_describe_problem(problem, source, flags) for problem in error.errors(include_url=False)]
    lines = list(dict.fromkeys(problems))  # a key of several types has a problem with each
    return lines[0] if len(lines) == 1 else "\n  ".join([f"{len(lines)} problems:", *lines])


def _describe_problem(problem: Mapping[str, Any], source: str, flags: Set[str]) -> str:
    sections = {name for name, field in TrainConfig.model_fields.items() if is_section(field)}
    known = {key.name: key for key in keys()}
    name = ".".join(str(part) for part in problem["loc"])
    # A problem inside a list is reported for the list.
    inner = name.rpartition(".")[2]
    name = next((key for key in known if name.startswith(f"{key}.")), name)
    where = f"flag --{name}" if name in flags else source
    if name in known and known[name].holds_tables and problem["type"] in ("extra_forbidden", "missing"):
        what = "unknown" if problem["type"] == "extra_forbidden" else "missing"
        return f"{what} key {inner!r} in a table of {name} in {where}{_hint(inner, known[name].inner_keys)}"
    if problem["type"] == "extra_forbidden":
        return f"unknown key {name!r} in {where}{_hint(name, [*known, *sections])}"
    if problem["type"] == "missing":
        names = [key for key in known if key == name or key.startswith(f"{name}.") and known[key].field.is_required()]
        return f"missing key {', '.join(names)}: set it in the TOML file or by a flag"
    if problem["type"] == "value_error":
        return f"{source}: {problem['msg'].removeprefix('Value error, ')}"
    if name in sections:
        return f"{name!r} in {where} must be a table: [{name}]"
    value = toml_value(problem["input"])
    value = value if len(value) <= 200 else f"{value[:200]}…"
    return f"{where}: {name} = {value}: expected {known[name].expects if name in known else problem['msg']}"


def _hint(name: str, candidates: Sequence[str]) -> str:
    if word := word_for(name):
        return f"; {word}"
    if found := hint(name, candidates):
        return found
    # The right key in the wrong section, or with its section left out.
    by_last = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
    last = nearest(name.rpartition(".")[2], by_last)
    return f"; {did_you_mean(by_last[last])}" if last is not None else ""
