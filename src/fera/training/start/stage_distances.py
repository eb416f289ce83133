"""The graph of a run's stages: how far their pictures lie apart, by energies or by features, and its picture."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fera.config import AdapterConfig, DataConfig
from fera.data.cache.encoded import EncodedSet
from fera.data.example import Example
from fera.data.images import load_image
from fera.data.tensors import to_tensor
from fera.domains.energy import energy_distances, log_energies
from fera.domains.graph import DomainGraph
from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.method.settings import KAPPA, NUM_BANDS
from fera.support.files import replace_file
from fera.support.progress import Listener

# From so many of a stage's pictures its distances are computed, evenly spread over it.
MOST_PICTURES = 1000


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
