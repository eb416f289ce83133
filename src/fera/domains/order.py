r"""In which order sources are visited before the target.

With :math:`d` the distance, :math:`t` the target and :math:`s_1, \dots, s_n` the sources in the order in which they are
visited,

.. math:: \text{nearest: } d(s_i, t) \le d(s_{i+1}, t), \qquad \text{farthest: } d(s_i, t) \ge d(s_{i+1}, t),

.. math:: \text{path: } \operatorname*{arg\,min}_{s} \; d(s_n, t) + \sum_{i<n} d(s_i, s_{i+1}).
"""

from typing import Literal

from fera.domains.graph import DomainGraph
from fera.errors import FeraError

Order = Literal["given", "nearest", "farthest", "path"]

# The shortest path is found exactly, which takes 2^n n^2 steps.
MOST_SOURCES = 14


def visiting_order(graph: DomainGraph, order: Order) -> list[int]:
    """Places of the domains in the order in which they are visited; the target is the last one.

    Args:
        graph: the domains.
        order: "given"; "nearest", the one nearest to the target first; "farthest"; or "path", the shortest way through
            all sources to the target. Where two do alike, what was given first comes first.

    Raises:
        FeraError: a path through so many sources would take too long to find.
    """
    sources = graph.sources
    if order in ("nearest", "farthest"):
        sign = 1 if order == "nearest" else -1
        sources.sort(key=lambda place: sign * graph.distances[place][graph.target])  # stable
    elif order == "path":
        sources = _shortest(graph)
    return [*sources, graph.target]


def _shortest(graph: DomainGraph) -> list[int]:
    """The sources along the shortest path that ends in the target, as Held and Karp find it.

    Source:
        Held and Karp, A dynamic programming approach to sequencing problems, 1962.
    """
    sources = graph.sources
    if len(sources) > MOST_SOURCES:
        raise FeraError(
            f"data.stage_order = path takes at most {MOST_SOURCES} sources, and there are {len(sources)}: take "
            "nearest or farthest, or leave some out"
        )
    count, whole = len(sources), (1 << len(sources)) - 1
    # From a source on, with those that are still to come: the length of the way to the target, and the next source.
    best: dict[tuple[int, int], tuple[float, int]] = {
        (0, here): (graph.distances[sources[here]][graph.target], here) for here in range(count)
    }
    for left in range(1, whole + 1):
        for here in range(count):
            if left >> here & 1:
                continue
            ways = [
                (graph.distances[sources[here]][sources[next_]] + best[left & ~(1 << next_), next_][0], next_)
                for next_ in range(count)
                if left >> next_ & 1
            ]
            best[left, here] = min(ways)
    _, here = min((best[whole & ~(1 << first), first][0], first) for first in range(count))
    path, left = [], whole
    while True:
        path.append(sources[here])
        left &= ~(1 << here)
        if not left:
            return path
        here = best[left, here][1]
