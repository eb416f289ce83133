"""Table `data.stages`: domains that a run visits one after the other."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from fera.config.section import Section

StageOrder = Literal["given", "nearest", "farthest", "path", "together"]
StageDistance = Literal["energy", "judge", "clip", "inception"]


class StageConfig(Section):
    """A folder of pictures, and for how long a run trains on it."""

    train_data_dir: Path = Field(strict=False, description="Folder of its pictures and captions.")
    target: bool = Field(default=False, description="Whether it is what the run is for.")
    steps: int | None = Field(default=None, ge=1, description="Steps of the run on it.")
    weight: float | None = Field(default=None, gt=0, description="Share of the steps that stages without steps share.")
    name: str | None = Field(
        default=None, min_length=1, max_length=64, pattern=r"^[^/\\]+$", description="How it is called."
    )

    @model_validator(mode="after")
    def _check(self) -> "StageConfig":
        if self.steps is not None and self.weight is not None:
            raise ValueError(f"data.stages: {self.train_data_dir} has steps and a weight; keep one")
        return self


def stage_names(stages: Sequence[StageConfig]) -> list[str]:
    """What stages are called: their own names, else the part of their paths that tells them apart."""
    paths = [stage.train_data_dir.parts for stage in stages]
    end = 0  # how many parts at the end are alike in all
    while len(paths) > 1 and all(len(parts) > end + 1 for parts in paths):
        if len({parts[-1 - end] for parts in paths}) > 1:
            break
        end += 1
    kept = [parts[: len(parts) - end] for parts in paths]
    count = 1
    while count < max(map(len, kept), default=0) and len({parts[-count:] for parts in kept}) < len(kept):
        count += 1
    # A slash stands between a stage and its picture's name.
    found = ["-".join(part.strip("/\\") for part in parts[-count:]) for parts in kept]
    return [stage.name or name or "stage" for stage, name in zip(stages, found, strict=True)]


def stage_steps(stages: Sequence[StageConfig], steps: int) -> list[int]:
    """How many steps each stage has.

    Stages with steps have those. The others share what is left by their weights, 1 where one has none: each its share
    rounded down, and one more for those that lost most by that.

    Args:
        stages: in any order.
        steps: of the run.

    Returns:
        One number a stage, in the given order; they sum to `steps`.

    Raises:
        ValueError: the steps do not sum to the run's, or leave some stage without any.
    """
    fixed = sum(stage.steps or 0 for stage in stages)
    weights = {place: stage.weight or 1.0 for place, stage in enumerate(stages) if stage.steps is None}
    left = steps - fixed
    if not weights and left:
        raise ValueError(f"the steps of data.stages sum to {fixed}, and train.steps is {steps}: make them equal")
    if left < len(weights):
        raise ValueError(
            f"the steps of data.stages sum to {fixed}, which leaves {max(left, 0)} of train.steps, {steps}, for "
            f"{len(weights)} stages without steps"
        )
    shares = {place: left * weight / sum(weights.values()) for place, weight in weights.items()}
    given = {place: max(1, int(share)) for place, share in shares.items()}
    for place in sorted(shares, key=lambda place: int(shares[place]) - shares[place]):
        if sum(given.values()) < left:
            given[place] += 1
    while sum(given.values()) > left:  # some had less than a step, and were given one
        given[max(given, key=lambda place: given[place])] -= 1
    return [stage.steps if stage.steps is not None else given[place] for place, stage in enumerate(stages)]
