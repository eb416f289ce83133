"""The stages of a run: which rows of its pictures each has, in which order they come, and for how many steps."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fera.config import AdapterConfig, DataConfig, TrainConfig
from fera.config.stages import stage_steps
from fera.data.cache.encoded import EncodedSet
from fera.data.example import Example
from fera.data.images import load_image
from fera.data.tensors import to_tensor
from fera.domains.energy import energy_distances, log_energies
from fera.domains.graph import DomainGraph
from fera.domains.order import visiting_order
from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.method.settings import KAPPA, NUM_BANDS
from fera.support.files import replace_file, replace_text
from fera.support.progress import Listener
from fera.support.strict_json import to_json

# From so many of a stage's pictures its distances are computed, evenly spread over it.
MOST_PICTURES = 1000


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


def domain_graph(
    data: DataConfig,
    adapter: AdapterConfig,
    training: EncodedSet,
    examples: Sequence[Example],
    rows: Sequence[Sequence[int]],
    *,
    device: torch.device,
    listener: Listener,
) -> DomainGraph:
    """The graph of a run's stages.

    Args:
        data: says what the distances are of.
        adapter: its bands are those of the energies; the default ones for a baseline.
        training: encoded pictures.
        examples: the examples they are of, one a row.
        rows: rows of each stage.
        device: where to compute.
        listener: hears how far it is.

    Raises:
        FeraError: the features cannot be had, or there are too few pictures for them.
    """
    chosen = [_spread(one) for one in rows]
    target = next(place for place, stage in enumerate(data.stages) if stage.target)
    if data.stage_distance == "energy":
        bands = FrequencyBands(NUM_BANDS, KAPPA)
        if adapter.is_routed:
            assert adapter.kappa != "auto"
            bands = FrequencyBands(adapter.num_bands, adapter.kappa)
        energies = []
        for place, one in enumerate(chosen, start=1):
            energies.append(torch.cat([_energies(bands, training.latent(row).to(device)) for row in one]))
            listener.advance("energies of the stages", place, len(chosen))
        measure = f"energies of latents in {bands.num_bands} bands"
        return DomainGraph(tuple(data.stage_names), target, energy_distances(energies), measure)
    features, name = _features(data)
    found = []
    for place, one in enumerate(chosen, start=1):
        if len(one) < 2:
            raise FeraError(
                f"data.stage_distance = {data.stage_distance} needs two pictures of a stage at least, and "
                f"{data.stage_names[place - 1]} has one: take energy"
            )
        sizes = [(training.sizes[row][0], training.sizes[row][1]) for row in one]
        pictures = (
            to_tensor(load_image(examples[row].image), size)[None] for row, size in zip(one, sizes, strict=True)
        )
        found.append(features(pictures))
        listener.advance("features of the stages", place, len(chosen))
    return DomainGraph(tuple(data.stage_names), target, _feature_distances(found), f"features of {name}")


def draw_graph(graph: DomainGraph, order: str, names: Sequence[str], path: Path) -> None:
    """Draw a graph and the way through it, whole or not at all.

    Args:
        graph: the stages.
        order: how they are ordered, as in the configuration.
        names: their names as they come.
        path: the picture.

    Raises:
        OSError: it cannot be written.
    """
    from fera.domains.plot import plot_graph

    way = [graph.names.index(name) for name in names]
    title = f"data.stage_order = {order}"
    kind = path.suffix.lstrip(".") or "png"
    replace_file(path, lambda file: plot_graph(graph, way, title, file, kind=kind, is_way=order != "together"))


def graph_record(graph: DomainGraph) -> dict[str, Any]:
    """A graph as JSON has it."""
    return {
        "names": list(graph.names),
        "target": graph.names[graph.target],
        "measure": graph.measure,
        "distances": [[float(f"{one:.6g}") for one in row] for row in graph.distances],
    }


def _spread(rows: Sequence[int]) -> list[int]:
    if len(rows) <= MOST_PICTURES:
        return list(rows)
    return [rows[index * len(rows) // MOST_PICTURES] for index in range(MOST_PICTURES)]


def _energies(bands: FrequencyBands, latent: Tensor) -> Tensor:
    """Log energies of a latent, shape (1, K); of a clip, those of its frames together."""
    frames = latent.movedim(1, 0) if latent.ndim == 4 else latent[None]
    return log_energies(bands.energies(frames).sum(dim=0, keepdim=True).cpu(), latent.numel())


def _features(data: DataConfig) -> tuple[Any, str]:
    """A function from pictures, in chunks, to their features, and what its network is called."""
    if data.stage_distance == "judge":
        from fera.features.judge import load_judge

        judge = load_judge()
        return (lambda pictures: judge.look(_batches(pictures)).features), judge.name
    from fera.features.networks import InceptionFeatures, load_clip

    source = load_clip(data.stage_clip_model) if data.stage_distance == "clip" else InceptionFeatures()
    return (lambda pictures: source.features(_batches(pictures))), source.name


def _batches(pictures: Iterator[Tensor]) -> Iterator[Tensor]:
    """Pictures one by one as chunks of those that follow each other in one size."""
    held: list[Tensor] = []
    for picture in pictures:
        if held and (held[0].shape != picture.shape or len(held) == 32):
            yield torch.cat(held)
            held = []
        held.append(picture)
    if held:
        yield torch.cat(held)


def _feature_distances(features: Sequence[Tensor]) -> tuple[tuple[float, ...], ...]:
    """Roots of the kernel distances, which are squares of a distance: unbiased, they may fall below 0."""
    from fera.features.distributions import kernel_distance

    count = len(features)
    found = [[0.0] * count for _ in range(count)]
    for one in range(count):
        for other in range(one):
            squared = max(0.0, kernel_distance(features[one], features[other]))
            found[one][other] = found[other][one] = squared**0.5
    return tuple(tuple(row) for row in found)
