"""The stages of a run: what `stages.json` says of them, and the losses while they lasted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fera.report.folder import read_json
from fera.report.log import Log, number
from fera.report.pictures import Picture, embed_file
from fera.training.folder.run_folder import RunFolder

_SIDE = 1000  # the longest one of the picture


@dataclass(frozen=True)
class Stages:
    """The stages of a run; without rows in a run that has none.

    Args:
        order: how their order was chosen.
        rows: of each stage its name, pictures, steps and mean training loss, as text.
        graph: the picture of their distances, where there is one.
    """

    order: str = ""
    rows: list[tuple[str, str, str, str]] = field(default_factory=list)
    graph: Picture | None = None


def read_stages(folder: Path, log: Log, problems: list[str]) -> Stages:
    """Read the stages that a run's folder tells of.

    Args:
        folder: the folder of the run.
        log: the log of the run.
        problems: gets a line for each file that is damaged.
    """
    run = RunFolder(folder)
    told = read_json(run.stages, problems)
    if not told:
        return Stages()
    stages = told.get("stages")
    rows = [_row(stage, log.series("loss")) for stage in stages] if isinstance(stages, list) else []
    if not rows or None in rows:
        problems.append("stages.json tells of no stages that can be shown")
        return Stages()
    order = str(told.get("order", ""))
    graph = None
    if run.stages_picture.is_file():
        try:
            graph = embed_file(run.stages_picture, "Distances between the stages, and the way through them", _SIDE)
        except ValueError as error:
            problems.append(str(error))
    return Stages(order, [row for row in rows if row is not None], graph)


def _row(stage: object, losses: Sequence[tuple[float, float | None]]) -> tuple[str, str, str, str] | None:
    if not isinstance(stage, dict):
        return None
    pictures, first = number(stage.get("pictures")), number(stage.get("first_step"))
    if pictures is None or first is None:
        return None
    name, steps = str(stage.get("name", "")), number(stage.get("steps"))
    if steps is None:
        return name, f"{pictures:,.0f}", "all", ""
    last = first + steps - 1
    # A line of the log is about the steps before it.
    during = [loss for step, loss in losses if loss is not None and first <= step <= last]
    mean = f"{sum(during) / len(during):.4f}" if during else "–"
    return name, f"{pictures:,.0f}", f"{first:,.0f} to {last:,.0f}", mean
