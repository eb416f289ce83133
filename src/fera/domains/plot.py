"""The picture of a graph of domains, with matplotlib."""

import os
from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from fera.domains.graph import DomainGraph

_SOURCE, _TARGET, _PATH, _EDGE = "#4878a8", "#c44e52", "#2f2f2f", "#9a9a9a"


def plot_graph(
    graph: DomainGraph,
    order: Sequence[int],
    title: str,
    path: str | os.PathLike[str],
    *,
    kind: str | None = None,
    is_way: bool = True,
) -> None:
    """Draw domains so that their places keep their distances as far as a plane can, and the way through them.

    Args:
        graph: the domains.
        order: places of the domains in the order in which they are visited.
        title: the title of the picture.
        path: the file; its ending chooses the format (png, svg, pdf).
        kind: the format, where the ending does not say it.
        is_way: whether the domains are visited one after the other.

    Raises:
        ValueError: there is no such format.
    """
    figure = Figure(figsize=(10, 5), layout="constrained")
    axes, words = figure.subplots(1, 2, width_ratios=(3, 1.3))
    places = in_a_plane(graph.distances).tolist()
    largest = max(map(max, graph.distances)) or 1.0
    steps = list(zip(order, order[1:], strict=False)) if is_way else []
    for one in range(len(places)):
        for other in range(one + 1, len(places)):
            (x, y), (u, v) = places[one], places[other]
            nearness = 1 - graph.distances[one][other] / largest
            axes.plot([x, u], [y, v], color=_EDGE, linewidth=0.4 + 1.2 * nearness, zorder=1)
    for one, other in steps:
        axes.annotate(
            "",
            places[other],
            places[one],
            arrowprops={"arrowstyle": "-|>", "color": _PATH, "linewidth": 1.8, "shrinkA": 9, "shrinkB": 9},
            zorder=2,
        )
    for number, place in enumerate(order, start=1):
        is_target = place == graph.target
        x, y = places[place]
        axes.scatter([x], [y], s=230, color=_TARGET if is_target else _SOURCE, edgecolors="white", zorder=4)
        axes.annotate(str(number), (x, y), ha="center", va="center", color="white", fontweight="bold", zorder=5)
        # Beside the picture: names of domains that lie close together would cover each other.
        line = f"{number}  {graph.names[place]}{' (target)' if is_target else ''}"
        height = 1 - (number - 0.5) / len(order)
        words.text(0, height, line, va="center", fontsize=11, color=_TARGET if is_target else _PATH)
    for number, (one, other) in enumerate(steps, start=1):
        distance = f"    ↓ {graph.distances[one][other]:.3g}"
        words.text(0, 1 - number / len(order), distance, va="center", fontsize=9, color="#707070")
    axes.set_title(f"{title}\ndistances: {graph.measure}", fontsize=11, loc="left")
    axes.set_aspect("equal", adjustable="datalim")
    axes.margins(0.15)
    axes.axis("off")
    words.set(xlim=(0, 1), ylim=(0, 1))
    words.axis("off")
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
