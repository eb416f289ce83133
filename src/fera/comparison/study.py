"""What a study compares: one typed definition, read from a TOML file."""

import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fera.demo import STYLES
from fera.errors import FeraError
from fera.evaluation import EvaluationSettings
from fera.support.hints import hint

# Folders of a study that are no methods.
LEARNING_RATES, DATA, CACHE, REPORT = "learning-rates", "data", "cache", "report"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class Method(_Section):
    """One of the methods compared: what its training configuration has beside the common one."""

    label: str | None = Field(default=None, description="How tables and plots call it; its name when unset.")
    matched: bool = Field(
        default=True,
        description="Whether it must have as many trained parameters as the first method, within 2 percent, "
        "the router left out.",
    )
    note: str | None = Field(default=None, description="A line below the tables.")
    learning_rates: list[float] | None = Field(
        default=None, min_length=1, description="Candidates of its own for the learning rate."
    )
    data: dict[str, Any] = Field(
        default={},
        description="Keys of [data]. A stage's train_data_dir may name a bundled style, and the target's is left out.",
    )
    adapter: dict[str, Any] = Field(default={}, description="Keys of [adapter].")
    train: dict[str, Any] = Field(default={}, description="Keys of [train].")


class LearningRates(_Section):
    """The search of learning rates: short runs, judged by the loss on validation names."""

    candidates: list[float] = Field(min_length=1, description="Rates to try for each method.")
    styles: list[str] | None = Field(
        default=None,
        min_length=1,
        description="Styles whose mean validation loss chooses one rate for all; unset, each style chooses its own.",
    )
    seed: int = Field(default=0, ge=0, description="Seed of these runs.")


class Study(_Section):
    """Methods, styles and seeds, and what all runs have in common."""

    name: str = Field(min_length=1, description="Name of the study.")
    base: str = Field(default="emoji", min_length=1, description="The pipeline to fine-tune, as in a training run.")
    styles: list[str] = Field(
        min_length=1,
        description="Bundled styles, or folders with train/, validation/ and test/, named after the folder.",
    )
    seeds: list[int] = Field(min_length=1, description="Seeds of training runs.")
    reference: str | None = Field(default=None, description="Method to compare with; the first when unset.")
    training_pictures: int | None = Field(
        default=None, ge=1, description="Training pictures of a style, the first of a fixed order; all when unset."
    )
    data: dict[str, Any] = Field(default={}, description="Common keys of [data].")
    adapter: dict[str, Any] = Field(default={}, description="Common keys of [adapter].")
    train: dict[str, Any] = Field(default={}, description="Common keys of [train].")
    validation_samples: int = Field(default=256, ge=1, description="Samples of a validation loss.")
    learning_rates: LearningRates | None = Field(default=None, description="The search; none when unset.")
    evaluation: EvaluationSettings = Field(
        default=EvaluationSettings(), description="Settings of the evaluation on test names."
    )
    methods: dict[str, Method] = Field(min_length=1, description="By name; the first sets the parameter count.")

    @property
    def reference_method(self) -> str:
        """The method that others are compared with."""
        return self.reference or next(iter(self.methods))

    def label(self, method: str) -> str:
        """How tables and plots call a method."""
        return self.methods[method].label or method

    @property
    def style_names(self) -> list[str]:
        """Names of the styles: those of folders are the folders' own."""
        return [style_name(style) for style in self.styles]

    @property
    def stage_styles(self) -> list[str]:
        """Bundled styles that are stages of a run, each once."""
        tables = [self.data, *(method.data for method in self.methods.values())]
        stages = [stage for table in tables for stage in table.get("stages", []) if isinstance(stage, dict)]
        folders = [stage.get("train_data_dir") for stage in stages]
        return list(dict.fromkeys(folder for folder in folders if isinstance(folder, str) and folder in STYLES))

    @model_validator(mode="after")
    def _check(self) -> "Study":
        for name in self.methods:
            if not _NAME.fullmatch(name) or name in (LEARNING_RATES, DATA, CACHE, REPORT):
                raise ValueError(f"methods.{name} cannot be the name of a folder of runs; choose another name")
        for what, values in (("styles", self.style_names), ("seeds", self.seeds)):
            if twice := sorted({str(value) for value in values if list(values).count(value) > 1}):
                raise ValueError(f"{what} lists {', '.join(twice)} twice")
        _check_known("reference", [self.reference_method], list(self.methods))
        if self.learning_rates is not None and self.learning_rates.styles is not None:
            _check_known("learning_rates.styles", self.learning_rates.styles, self.style_names)
        for style in self.styles:
            if style not in STYLES and not Path(style).is_dir():
                raise ValueError(
                    f"style {style!r} is no folder (looked from {Path.cwd()}) and none of the bundled ones: "
                    f"{', '.join(STYLES)}{hint(style, STYLES)}"
                )
        return self


def style_name(style: str) -> str:
    """What a style is called: bundled ones as they are, folders by their last part."""
    return style if style in STYLES else Path(style).resolve().name


def read_study(path: Path) -> Study:
    """Read a study.

    Args:
        path: its TOML file. Relative folders in it are relative to the working directory.

    Raises:
        FeraError: the file cannot be read, or a key is unknown, missing, or of wrong type or range.
    """
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot read the study {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise FeraError(f"{path} is not UTF-8 text; a study is a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise FeraError(f"{path} is not valid TOML: {error}") from None
    return parse_study(settings, str(path))


def parse_study(settings: Mapping[str, Any], source: str) -> Study:
    """A study from its settings.

    Args:
        settings: as a TOML file holds them.
        source: where they come from, for messages.

    Raises:
        FeraError: they are not valid.
    """
    try:
        return Study.model_validate(settings)
    except ValidationError as error:
        problems = [_in_words(problem, source) for problem in error.errors(include_url=False)]
        raise FeraError("\n  ".join(dict.fromkeys(problems))) from None


def _check_known(key: str, names: Sequence[str], known: Sequence[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{key} names {name!r}, there are: {', '.join(known)}{hint(name, known)}")


def _in_words(problem: Mapping[str, Any], source: str) -> str:
    where = [str(part) for part in problem["loc"]]
    name = ".".join(where)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {name!r} in {source}{hint(where[-1], _keys_beside(where))}"
    if problem["type"] == "missing":
        return f"missing key {name!r} in {source}"
    if problem["type"] == "value_error":
        return f"{source}: {name + ': ' if name else ''}{problem['msg'].removeprefix('Value error, ')}"
    return f"{source}: {name} = {problem['input']!r}: {problem['msg']}"


def _keys_beside(where: Sequence[str]) -> list[str]:
    """Keys that could have been meant where an unknown one stands."""
    if where[0] == "methods":
        return list(Method.model_fields)
    if len(where) == 1:
        return list(Study.model_fields)
    if where[0] == "evaluation":
        return list(EvaluationSettings.__dataclass_fields__)
    return list(LearningRates.model_fields)
