"""The stages of a run: which rows of its pictures each has, in which order they come, and for how many steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fera.config import DataConfig, TrainConfig
from fera.config.stages import stage_steps
from fera.data.cache.encoded import EncodedSet
from fera.data.example import Example
from fera.domains.graph import DomainGraph
from fera.domains.order import visiting_order
from fera.errors import FeraError
from fera.support.files import replace_text
from fera.support.progress import Listener
from fera.support.strict_json import to_json
from fera.training.start.stage_distances import domain_graph, draw_graph, graph_record


@dataclass(frozen=True)
class Stage:
    """A stretch of a run.

    Args:
        name: the name of the stage.
        number: its place in the configuration, from 0.
        rows: rows of the training pictures that it trains on.
        start: the step before its first one: 0 for the first stage.
        steps: its steps; None where stages are trained together.
    """

    name: str
    number: int
    rows: tuple[int, ...]
    start: int
    steps: int | None


@dataclass(frozen=True)
class Course:
    """The stages of a run in the order in which they come.

    Args:
        stages: the stages, the target's at the end.
        order: how the order was chosen, as in the configuration.
        graph: the distances that it was chosen by; None where none were needed, or a run goes on.
    """

    stages: tuple[Stage, ...]
    order: str
    graph: DomainGraph | None

    @property
    def names(self) -> list[str]:
        """Names of the stages as they come."""
        return [stage.name for stage in self.stages]

    def describe(self) -> str:
        """The course in a line."""
        if self.order == "together":
            return f"stages together: {', '.join(f'{s.name} ({len(s.rows)} pictures)' for s in self.stages)}"
        parts = [f"{s.name} ({s.steps} step{'' if s.steps == 1 else 's'})" for s in self.stages]
        return f"stages, {self.order}: {', then '.join(parts)}"

    def at(self, step: int) -> Stage | None:
        """The stage of the step that follows after so many; None where all are trained together."""
        if self.order == "together":
            return None
        return [stage for stage in self.stages if stage.start <= step][-1]

    def entered(self, step: int) -> Stage | None:
        """The stage that begins after so many steps, if one does."""
        stage = self.at(step)
        return stage if stage is not None and stage.start == step else None

    def write(self, record: Path, picture: Path) -> None:
        """Leave the stages in a run's folder, and their graph where distances chose the order.

        Args:
            record: the file for the stages.
            picture: the file for the graph.

        Raises:
            FeraError: they cannot be written.
        """
        stages = [
            {"name": s.name, "pictures": len(s.rows), "first_step": s.start + 1, "steps": s.steps} for s in self.stages
        ]
        told: dict[str, Any] = {"order": self.order, "stages": stages}
        try:
            if self.graph is not None:
                told["graph"] = graph_record(self.graph)
                draw_graph(self.graph, self.order, self.names, picture)
            replace_text(record, to_json(told, indent=2) + "\n")
        except OSError as error:
            raise FeraError(f"cannot write to {record.parent}: {error.strerror or error}") from error


def course_of(
    config: TrainConfig,
    training: EncodedSet,
    examples: Sequence[Example],
    listener: Listener,
    *,
    device: torch.device,
    former: Sequence[str] | None = None,
) -> Course | None:
    """The course of a run's stages.

    Args:
        config: the configuration of the run, its kappa settled.
        training: its encoded pictures.
        examples: the examples they are of, one a row.
        listener: hears the order.
        device: where to compute.
        former: names of the stages as they came in the run that is continued: nothing is chosen anew then.

    Returns:
        None for a run without stages.

    Raises:
        FeraError: a stage has no picture to train on, or the features cannot be had.
    """
    data = config.data
    if not data.stages:
        return None
    rows = rows_of_stages(data, examples)
    names, graph = data.stage_names, None
    if former is not None and sorted(former) == sorted(names):
        order = [names.index(name) for name in former]
    else:
        if data.stage_order not in ("given", "together"):
            graph = domain_graph(data, config.adapter, training, examples, rows, device=device, listener=listener)
        order = order_of_stages(data, graph)
    steps = None if data.stage_order == "together" else stage_steps(data.stages, config.train.steps)
    stages, start = [], 0
    for place in order:
        count = None if steps is None else steps[place]
        stages.append(Stage(names[place], place, tuple(rows[place]), start, count))
        start += count or 0
    course = Course(tuple(stages), data.stage_order, graph)
    listener.say(course.describe())
    return course


def rows_of_stages(data: DataConfig, examples: Sequence[Example]) -> list[list[int]]:
    """The rows of each stage, in the given order.

    Raises:
        FeraError: a stage has none.
    """
    found = [[row for row, example in enumerate(examples) if example.stage == name] for name in data.stage_names]
    for name, stage, rows in zip(data.stage_names, data.stages, found, strict=True):
        if not rows:
            raise FeraError(f"stage {name} of data.stages has no picture to train on ({stage.train_data_dir})")
    return found


def order_of_stages(data: DataConfig, graph: DomainGraph | None) -> list[int]:
    """Places of the stages, in the given order, as they come."""
    if graph is None:
        return sorted(range(len(data.stages)), key=lambda place: data.stages[place].target)  # stable
    assert data.stage_order != "together"
    return visiting_order(graph, data.stage_order)
