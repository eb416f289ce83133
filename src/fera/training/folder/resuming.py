"""What may differ between a run and its continuation, and how an allowed change takes effect."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from torch.optim.lr_scheduler import LambdaLR

from fera.config import OptimizationConfig, TrainConfig
from fera.config.keys import keys
from fera.config.optimization import CONSTANT_SCHEDULES
from fera.config.text import CLIP_ATTENTION
from fera.errors import FeraError
from fera.support.hints import hint
from fera.training.folder.checkpoints import read_config
from fera.training.trained.placed import placed_by
from fera.tuner.fingerprint import check_same_base

ALL = "all"
# These make no other run of it: how long it goes on, what it tells, where files lie. A final dot: the whole section.
FREE = (
    "output_dir",
    "validation.",
    "data.cache_dir",
    "train.steps",
    "train.logging_steps",
    "train.checkpointing_steps",
    "train.checkpoints_total_limit",
    "train.gradient_checkpointing",
    "train.compile",
    "train.offload",
    "train.blocks_on_device",
    "train.max_skipped_steps",
    "train.report_to",
    "train.logging_dir",
    "train.tracker_project_name",
    "push_to_hub",
    "hub_model_id",
    "hub_private",
    "license",
)
# These say what the weights and the optimizer's state in a checkpoint are. The optimizer's arguments are meant, too.
NEVER = ("adapter.", "text_encoder.", "tokens.", "train.optimizer", "train.use_ema", "train.ema_decay")
NEVER_BUT = (
    "adapter.lora_dropout",
    "adapter.top_k",
    "text_encoder.learning_rate",
    "tokens.learning_rate",
    "tokens.train_frac",
)
_TARGETS = "text_encoder.target_modules"


class CannotResume(FeraError):
    """A checkpoint does not fit the run that is to go on from it."""


@dataclass(frozen=True)
class Change:
    """A setting that differs.

    Args:
        name: dotted.
        before: its value in the checkpoint.
        now: its value in this run.
    """

    name: str
    before: Any
    now: Any

    def __str__(self) -> str:
        return f"{self.name} is {self.now!r}, was {self.before!r}"


def with_buckets_of(checkpoint: Path, config: TrainConfig) -> tuple[TrainConfig, bool]:
    """Let a run that sets no step between its buckets go on with the one it began with.

    Args:
        checkpoint: its folder.
        config: the configuration of the run that is to go on.

    Returns:
        The configuration, and whether the checkpoint names no step: then it is the one that was the default before
        checkpoints did.
    """
    if not config.data.enable_bucket or config.data.bucket_reso_steps is not None:
        return config, False
    before = read_config(checkpoint).get("data", {})
    step = before.get("bucket_reso_steps")
    if step is None:
        return config, bool(before.get("enable_bucket"))
    return config.model_copy(update={"data": config.data.model_copy(update={"bucket_reso_steps": step})}), False


def with_layers_of(checkpoint: Path, config: TrainConfig) -> TrainConfig:
    """Let a run that names no layers go on with those that it began with: the defaults may have been others then.

    Args:
        checkpoint: its folder.
        config: the configuration of the run that is to go on.

    Raises:
        FeraError: the config of the checkpoint's adapter cannot be read.
    """
    if config.adapter.target_modules is not None or config.adapter.full or config.adapter.start_from is not None:
        return config
    layers = placed_by(checkpoint / "adapter").get("target_modules")
    return config.model_copy(update={"adapter": config.adapter.model_copy(update={"target_modules": layers})})


def check_allow(allow: Sequence[str], *, resume: bool) -> None:
    """Hold what a user allows to change against the settings that there are.

    Args:
        allow: names of settings or sections, or "all".
        resume: whether a run goes on at all.

    Raises:
        FeraError: a name is none of them, or nothing is resumed.
    """
    if allow and not resume:
        raise FeraError("`allow` says what may differ from a checkpoint; it needs `resume`")
    known = [ALL, *TrainConfig.model_fields, *(key.name for key in keys())]
    for name in allow:
        if name not in known:
            raise FeraError(
                f"`allow` {name}: there is no such setting{hint(name, known) or ';'} it takes names of "
                "settings or of sections, as in `allow` train.learning_rate, or all"
            )


def is_allowed(name: str, allow: Sequence[str]) -> bool:
    """Whether a setting may differ: it, its section or everything is allowed to."""
    return bool({name, name.partition(".")[0], ALL} & set(allow))


def check_changes(checkpoint: Path, config: TrainConfig, allow: Sequence[str]) -> list[Change]:
    """Compare a run's settings with those of a checkpoint.

    Args:
        checkpoint: its folder.
        config: the configuration of the run that is to go on.
        allow: names of settings or sections that may differ, or "all".

    Returns:
        Those that differ and are allowed to; of those that always may, none.

    Raises:
        CannotResume: others differ.
    """
    written, new = _flat(read_config(checkpoint)), _flat(config.model_dump(mode="json"))
    old = _known_defaults() | written
    if "text_encoder.encoders" not in written and old[_TARGETS] == CLIP_ATTENTION:
        old[_TARGETS] = None
    differing = [
        Change(name, old.get(name), new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name) and not name.startswith(FREE)
    ]
    never = [change for change in differing if change.name.startswith(NEVER) and change.name not in NEVER_BUT]
    if never:
        raise CannotResume(
            f"cannot resume {checkpoint}: {_listed(never)}. Weights and optimizer of one kind cannot go on as "
            "another, whatever is allowed. Set it back, or start anew: with another output_dir, or with `overwrite`"
        )
    asked = [change for change in differing if not is_allowed(change.name, allow)]
    if asked:
        raise CannotResume(
            f"cannot resume {checkpoint} with other settings: {_listed(asked)}. Set them back, or allow them by "
            f"`allow` {' '.join(change.name for change in asked)}"
        )
    return differing


def check_base_and_data(
    checkpoint: Path, state: Mapping[str, Any], base: dict[str, Any], data_digest: str, allow: Sequence[str]
) -> bool:
    """Compare a run's base and data with those of a checkpoint.

    Args:
        checkpoint: its folder.
        state: what it holds.
        base: fingerprint of this run's.
        data_digest: the data digest of this run's pictures and captions.
        allow: as for `check_changes`; "data" allows other pictures and captions.

    Returns:
        Whether pictures or captions differ, and are allowed to.

    Raises:
        CannotResume: the base is another one, or the data is and may not be.
    """
    try:
        check_same_base(base, state["base"])
    except FeraError as error:
        raise CannotResume(
            f"cannot resume {checkpoint}: its base has other weights than this one, and nothing allows that. Set the "
            "base back, or start anew"
        ) from error
    if state["data"] == data_digest:
        return False
    if not is_allowed("data", allow):
        raise CannotResume(
            f"cannot resume {checkpoint}: pictures or captions changed since. Restore them, allow it by "
            "`allow` data, or start anew"
        )
    return True


def config_of(checkpoint: Path) -> TrainConfig:
    """The settings that a checkpoint was written with; those that are newer than it have their defaults.

    Raises:
        CannotResume: they are of another version of fera.
    """
    try:
        return TrainConfig.model_validate(read_config(checkpoint))
    except ValidationError as error:
        raise CannotResume(f"cannot resume {checkpoint}: its settings are of another version of fera") from error


def adopt_hyperparameters(
    groups: Sequence[dict[str, Any]],
    before: Sequence[Mapping[str, Any]],
    now: Sequence[Mapping[str, Any]],
    schedule: LambdaLR,
) -> None:
    """Let this run's settings take effect in an optimizer and a schedule that were restored: both hold former ones.

    Learning rates are then those of this run's course at the step that was reached.

    Args:
        groups: parameter groups of the restored optimizer.
        before: groups as the former settings make them.
        now: groups as this run's settings make them.
        schedule: restored; its course is this run's, its base rates are the former run's.
    """
    for group, old, new in zip(groups, before, now, strict=True):
        changed = {name: value for name, value in new.items() if name != "params" and value != old.get(name)}
        group.update(changed)
        if "lr" in changed:
            group["initial_lr"] = changed["lr"]
    schedule.base_lrs = [group["initial_lr"] for group in groups]
    for group, course in zip(groups, schedule.lr_lambdas, strict=True):
        group["lr"] = group["initial_lr"] * course(schedule.last_epoch)
    schedule._last_lr = [group["lr"] for group in groups]


def change_of_course(former: OptimizationConfig, settings: OptimizationConfig, before: float, now: float) -> str | None:
    """What another length does to the learning rate, which falls over the whole run with most schedules.

    Args:
        former: the former of the checkpoint.
        settings: the settings of the run that goes on.
        before: learning rate of the next step by the checkpoint's course.
        now: by this run's.

    Returns:
        A line for a person; None where the length is the same, or the schedule does not depend on it.
    """
    if former.steps == settings.steps or settings.lr_scheduler in CONSTANT_SCHEDULES:
        return None
    return (
        f"train.steps is {settings.steps}, was {former.steps}: the learning rate follows the {settings.lr_scheduler} "
        f"schedule over {settings.steps} steps; the next step has {now:.3g}, it would have had {before:.3g}"
    )


def _known_defaults() -> dict[str, Any]:
    """Settings that the fera of a checkpoint may not have had yet."""
    return {key.name: key.field.default for key in keys() if not key.field.is_required()}


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Sections as dotted names."""
    flat: dict[str, Any] = {}
    for section, values in settings.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{name}": value for name, value in values.items()}
        else:
            flat[section] = values
    return flat


def _listed(changes: Iterable[Change]) -> str:
    return "; ".join(map(str, changes))
