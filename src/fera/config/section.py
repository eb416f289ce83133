"""What all sections of the configuration share."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator


class Section(BaseModel):
    """A table of the configuration, or all of it."""

    # Strict: "False" is not true and 2.5 is not 2. Frozen: the run's config.toml stays what the run used.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _check_path(cls, value: Any) -> Any:
        # The system's calls would fail on it one by one, each in a way of its own.
        if isinstance(value, Path) and "\0" in str(value):
            raise ValueError(f"{str(value)!r} is no path")
        return value


def check_unused(section: Section, name: str, switch: str) -> None:
    """Settings of something that is off are a mistake."""
    if not getattr(section, switch):
        for key, field in type(section).model_fields.items():
            if getattr(section, key) != field.default:
                raise ValueError(f"{name}.{key} is set, but {name}.{switch} is not: set both or neither")
