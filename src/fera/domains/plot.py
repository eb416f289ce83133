"""The picture of a graph of domains, with matplotlib."""

import os
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fera.domains.graph import DomainGraph

_SOURCE, _TARGET, _PATH, _EDGE = "#4878a8", "#c44e52", "#2f2f2f", "#9a9a9a"


def plot_graph(
    graph: DomainGraph, order: Sequence[int], title: str, path: str | os.PathLike[str], *, kind: str | None = None
) -> None:
    """Draw domains so that their places keep their distances as far as a plane can, and the way through them.

    Args:
        graph: the domains.
        order: places of the domains in the order in which they are visited.
        title: the title of the picture.
        path: the file; its ending chooses the format (png, svg, pdf).
        kind: the format, where the ending does not say it.

    Raises:
        ValueError: there is no such format.
    """
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots()
    places = in_a_plane(graph.distances).tolist()
    span = max(max(column) - min(column) for column in zip(*places, strict=True)) or 1.0
    largest = max(map(max, graph.distances)) or 1.0
    visited = set(zip(order, order[1:], strict=False))
    for one in range(len(places)):
        for other in range(one + 1, len(places)):
            distance, is_on_path = graph.distances[one][other], {(one, other), (other, one)} & visited
            (x, y), (u, v) = places[one], places[other]
            if not is_on_path:
                axes.plot([x, u], [y, v], color=_EDGE, linewidth=0.6 + 1.6 * (1 - distance / largest), zorder=1)
            axes.annotate(
                f"{distance:.3g}",
                ((x + u) / 2, (y + v) / 2),
                ha="center",
                va="center",
                fontsize=7,
                fontweight="bold" if is_on_path else "normal",
                color=_PATH if is_on_path else "#707070",
                bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
                zorder=3,
            )
    for one, other in zip(order, order[1:], strict=False):
        axes.annotate(
            "",
            places[other],
            places[one],
            arrowprops={"arrowstyle": "-|>", "color": _PATH, "linewidth": 2, "shrinkA": 12, "shrinkB": 12},
            zorder=2,
        )
    for number, place in enumerate(order, start=1):
        x, y = places[place]
        is_target = place == graph.target
        axes.scatter([x], [y], s=360, color=_TARGET if is_target else _SOURCE, zorder=4)
        axes.annotate(str(number), (x, y), ha="center", va="center", color="white", fontweight="bold", zorder=5)
        name = f"{graph.names[place]} (target)" if is_target else graph.names[place]
        axes.annotate(name, (x, y), (0, 15), textcoords="offset points", ha="center", fontsize=10, zorder=5)
    axes.set_title(f"{title}\ndistances: {graph.measure}", fontsize=11)
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.18 if span else 0.5)
    axes.axis("off")
    figure.savefig(path, dpi=120, format=kind)


def in_a_plane(distances: Sequence[Sequence[float]]) -> Tensor:
    """Places in a plane whose distances are as near to the given ones as classical scaling gets.

    Args:
        distances: symmetric, n rows of n.

    Returns:
        Shape (n, 2), float64.

    Source:
        Torgerson, Multidimensional scaling: I. Theory and method, 1952.
    """
    squared = torch.tensor(distances, dtype=torch.float64).square()
    count = len(squared)
    centring = torch.eye(count, dtype=torch.float64) - 1 / count
    values, vectors = torch.linalg.eigh(-0.5 * centring @ squared @ centring)
    places = vectors[:, -2:].flip(1) * values[-2:].flip(0).clamp_min(0).sqrt()
    # Of either sign: the same one on every machine.
    first = places.abs().argmax(dim=0)
    signs = places[first, torch.arange(places.shape[1])].sign()
    return places * torch.where(signs == 0, torch.ones_like(signs), signs)
