"""Weights of adapters that change along the denoising steps."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from fera.models.components import denoisers


def weight_at(weights: Sequence[float], step: int, steps: int) -> float:
    """The weight of an adapter at a step.

    Args:
        weights: at least one, spread evenly from the first step to the last, with straight lines between them.
        step: from 0.
        steps: how many there are.
    """
    if len(weights) == 1 or steps == 1:
        return weights[0]
    place = step * (len(weights) - 1) / (steps - 1)
    before = min(int(place), len(weights) - 2)
    share = place - before
    return weights[before] * (1 - share) + weights[before + 1] * share


@contextmanager
def weights_along(pipe: Any, weights: Mapping[str, Sequence[float]], steps: int) -> Iterator[Callable[[int], None]]:
    """Weigh adapters in a pipeline's denoisers anew at each denoising step. On leaving, they have their first weights.

    Text encoders are left alone: their work is done before the first step.

    Args:
        pipe: the pipeline.
        weights: of each adapter, by its name, as `weight_at` takes them.
        steps: how many denoising steps there will be.

    Yields:
        A function to call after each step, with the number of steps done.
    """
    moving = {name: values for name, values in weights.items() if len(values) > 1}
    if not moving:
        yield lambda done: None
        return
    layers = [
        module
        for denoiser in denoisers(pipe).values()
        for module in denoiser.modules()
        if isinstance(module, BaseTunerLayer)
    ]

    def weigh(step: int) -> None:
        for name, values in moving.items():
            weight = weight_at(values, step, steps)
            for layer in layers:
                set_scale: Any = layer.set_scale
                set_scale(name, weight)

    weigh(0)
    try:
        yield lambda done: weigh(done) if done < steps else None
    finally:
        weigh(0)
