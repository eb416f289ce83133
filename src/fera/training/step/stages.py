"""The order of examples in a run of stages: each stage has an order of its own over its own rows."""

from bisect import bisect_right
from collections.abc import Sequence

from fera.config import TrainConfig
from fera.training.start.prepare import Setup
from fera.training.step.order import Order, order_of
from fera.training.step.randomness import mixed_seed


class Staged:
    """Orders one after the other. It is an `Order`.

    Args:
        stages: of each stage its first batch, counted over the run, its rows, and the order over them.
    """

    def __init__(self, stages: Sequence[tuple[int, Sequence[int], Order]]) -> None:
        self._stages = list(stages)
        self._firsts = [first for first, _, _ in stages]

    def rows(self, place: int) -> list[int]:
        """Examples of the batch."""
        first, rows, order = self._stages[bisect_right(self._firsts, place) - 1]
        return [rows[index] for index in order.rows(place - first)]

    def samples_before(self, place: int) -> int:
        """Examples in all batches before it."""
        ends = [*self._firsts[1:], place]
        return sum(
            order.samples_before(min(place, end) - first)
            for (first, _, order), end in zip(self._stages, ends, strict=True)
            if first < place
        )

    def place_after(self, samples: int) -> int:
        """The first batch before which there are so many examples, or more."""
        ends = [*self._firsts[1:], None]
        for (first, _, order), end in zip(self._stages, ends, strict=True):
            place = first + order.place_after(samples)
            if end is None or place <= end:
                return place
            samples -= order.samples_before(end - first)
        raise AssertionError("the last stage has no end")


def run_order(config: TrainConfig, setup: Setup, batches: int) -> Order:
    """The order in which a run sees its examples.

    Args:
        config: the configuration of the run.
        setup: what `prepare` made.
        batches: batches of a step, over all processes.
    """
    groups, course = setup.training.groups, setup.course
    if course is None or course.order == "together":
        return order_of(groups, config, setup.lengths)
    return Staged(
        [
            (
                stage.start * batches,
                stage.rows,
                # By its place in the configuration: a stage's pictures come alike whenever it comes.
                order_of([groups[row] for row in stage.rows], config, seed=mixed_seed(config.seed, 4, stage.number)),
            )
            for stage in course.stages
        ]
    )
