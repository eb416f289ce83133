"""The page docs/configuration.md, made from the typed configuration."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel

from fera.config import TrainConfig
from fera.config.keys import Key, is_section, keys


def to_markdown() -> str:
    """The reference page docs/configuration.md."""
    parts = [_MARKDOWN_HEAD]
    for name, field in TrainConfig.model_fields.items():
        if is_section(field):
            model: type[BaseModel] = field.annotation  # type: ignore[assignment]
            parts.append(f"## `[{name}]`\n\n{(model.__doc__ or '').strip()}\n\n" + _table(keys(model)))
    top = [key for key in keys() if "." not in key.name]
    parts.insert(1, "## Top level\n\n" + _table(top))
    return "\n\n".join(parts) + "\n"


_MARKDOWN_HEAD = """\
# Configuration of a training run

`fera train CONFIG.toml` reads these keys. Each is also a flag with its dotted name, and flags win:
`fera train CONFIG.toml --train.steps 500 --data.skip_bad --validation.prompts "a rocket" "a tree"`.
A flag of an optional key takes `none` to unset it; a table is written as JSON. Relative paths are relative to the
working directory.
The run's folder keeps the resolved configuration as `config.toml`, which `fera train` reads again.

This page is generated: `fera config --markdown > docs/configuration.md`."""


def _table(rows: Sequence[Key] | Iterator[Key]) -> str:
    lines = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for key in rows:
        default = key.default if key.default in ("required", "unset") else f"`{key.default}`"
        lines.append(f"| `{key.name}` | {key.expects} | {default} | {key.field.description} |")
    return "\n".join(lines)
