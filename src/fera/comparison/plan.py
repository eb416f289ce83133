"""The runs of a study: in which order, with which configuration, in which folder."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fera.comparison.study import CACHE, DATA, LEARNING_RATES, Study
from fera.config.reading import parse_config
from fera.demo import STYLES
from fera.evaluation import EvaluationSettings
from fera.training import TrainConfig

# Where things lie on a machine, and how often a run writes: another machine may differ.
_OF_THE_MACHINE = (
    *("output_dir", "data.train_data_dir", "data.validation_data_dir", "data.cache_dir"),
    *("train.logging_steps", "train.checkpointing_steps", "train.checkpoints_total_limit"),
    *("train.report_to", "train.logging_dir", "train.tracker_project_name"),
)
# Tables that are one setting each.
_ONE_VALUE = ("plain", "expert", "rank_pattern", "alpha_pattern")


@dataclass(frozen=True)
class Run:
    """One training.

    Args:
        method: its name in the study.
        style: name of the style.
        seed: the seed of the training.
        rate: the learning rate that is tried; None for a run of the comparison itself.
    """

    method: str
    style: str
    seed: int
    rate: float | None = None

    @property
    def is_search(self) -> bool:
        """Whether it only tries a learning rate."""
        return self.rate is not None

    def folder(self, output: Path) -> Path:
        """Its folder in that of the study."""
        place = Path(self.method, self.style, f"seed-{self.seed}")
        return output / place if self.rate is None else output / LEARNING_RATES / place / f"{self.rate:g}"

    def __str__(self) -> str:
        tried = f" · trying {self.rate:g}" if self.rate is not None else ""
        return f"{self.method} · {self.style} · seed {self.seed}{tried}"


def runs_of(study: Study, methods: list[str] | None = None) -> Iterator[Run]:
    """All runs in order: seeds outermost, then styles, then methods, so that a part of them is balanced.

    Args:
        study: the study.
        methods: those wanted; all when None.

    Yields:
        Before each run the trials of learning rates that it waits for, each once.
    """
    tried: set[Run] = set()
    for seed in study.seeds:
        for style in study.style_names:
            for method in methods or study.methods:
                for trial in trials_for(study, method, style):
                    if trial not in tried:
                        tried.add(trial)
                        yield trial
                yield Run(method, style, seed)


def trials_for(study: Study, method: str, style: str) -> list[Run]:
    """Trials that choose a method's learning rate for a style; none where the rate is given."""
    search = study.learning_rates
    candidates = study.methods[method].learning_rates or (search.candidates if search else [])
    if "learning_rate" in study.methods[method].train or len(candidates) < 2:
        return []
    seed = search.seed if search else 0
    judged = search.styles if search and search.styles else [style]
    return [Run(method, judge, seed, rate) for judge in judged for rate in candidates]


def given_rate(study: Study, method: str) -> float | None:
    """The only candidate of a method's learning rate; None where the configuration says it."""
    own = study.methods[method]
    candidates = own.learning_rates or (study.learning_rates.candidates if study.learning_rates else [])
    return candidates[0] if len(candidates) == 1 and "learning_rate" not in own.train else None


def configure(study: Study, run: Run, output: Path, data: Path, learning_rate: float | None) -> TrainConfig:
    """The training configuration of a run.

    Args:
        study: the study.
        run: the run.
        output: folder of the study.
        data: folder of the style with `train/` and `validation/`.
        learning_rate: as chosen; None leaves it to the study's own keys.

    Raises:
        FeraError: the study's keys make no valid configuration; the message names the method.
    """
    method = study.methods[run.method]
    rate = {} if learning_rate is None else {"learning_rate": learning_rate}
    settings: dict[str, Any] = {
        "base": study.base,
        "output_dir": run.folder(output) / "training",
        "seed": run.seed,
        "data": _with_styles(study.data | method.data, output)
        | {
            "train_data_dir": data / "train",
            "validation_data_dir": data / "validation",
            "cache_dir": output / CACHE,
        },
        # Keys of adapters say nothing where all weights train.
        "adapter": method.adapter if method.adapter.get("full") else study.adapter | method.adapter,
        "train": {"checkpoints_total_limit": 1, "report_to": "none"} | study.train | method.train | rate,
        "validation": {"loss_samples": study.validation_samples},
    }
    return parse_config(settings, f"study {study.name}, method {run.method}")


def _with_styles(data: dict[str, Any], output: Path) -> dict[str, Any]:
    """Keys of [data], with folders in the place of bundled styles that are stages."""
    if not isinstance(data.get("stages"), list):
        return data

    def found(stage: Any) -> Any:
        is_style = isinstance(stage, dict) and stage.get("train_data_dir") in STYLES
        return stage | {"train_data_dir": str(output / DATA / stage["train_data_dir"] / "train")} if is_style else stage

    return data | {"stages": [found(stage) for stage in data["stages"]]}


def portable(study: Study, config: TrainConfig) -> dict[str, Any]:
    """What a run's result depends on, by dotted name: the same on every machine."""
    settings = config.model_dump(mode="json")
    # By name: their folders are the machine's.
    for stage, name in zip(settings["data"]["stages"], config.data.stage_names, strict=True):
        stage |= {"name": name, "train_data_dir": None}
    settings["evaluation"] = json.loads(json.dumps(asdict(study.evaluation)))
    settings["training_pictures"] = study.training_pictures
    return {name: value for name, value in flat(settings).items() if name not in _OF_THE_MACHINE}


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """How two runs differ, one line a key.

    Keys that only one of them knows count where they are not at today's default: a newer fera has more keys.
    """
    lines = []
    for name in sorted(before.keys() | now.keys()):
        missing = _defaults().get(name)
        old, new = before.get(name, missing), now.get(name, missing)
        if old != new:
            lines.append(f"{name} is {new!r}, was {old!r}")
    return lines


def fingerprint(settings: Mapping[str, Any]) -> str:
    """Hash of what `portable` returns."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name; a scheme's own settings and patterns of layers stay one value."""
    result: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name not in _ONE_VALUE:
            result |= flat(value, f"{prefix}{name}.")
        else:
            result[prefix + name] = value
    return result


def _defaults() -> dict[str, Any]:
    least = TrainConfig.model_validate({"base": "-", "output_dir": "-", "data": {"train_data_dir": "-"}})
    evaluation = json.loads(json.dumps(asdict(EvaluationSettings())))
    return flat({**least.model_dump(mode="json"), "evaluation": evaluation})
