"""Adapters that act from a later denoising step on: the first steps, which lay out a picture, are the base's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from peft.tuners.tuners_utils import BaseTunerLayer

from fera.models.components import denoisers


@contextmanager
def adapters_after(pipe: Any, steps: int) -> Iterator[Callable[[int], None]]:
    """Keep the adapters in a pipeline's denoisers off until some denoising steps are done.

    What is off is not routed, so a trace begins where the adapters do. On leaving, adapters are as they were.

    Args:
        pipe: the pipeline.
        steps: that the base does alone.

    Yields:
        A function to call after each step, with the number of steps done.
    """
    if steps == 0:
        yield lambda done: None
        return
    modules = [module for denoiser in denoisers(pipe).values() for module in denoiser.modules()]
    before = {module: module._disable_adapters for module in modules if isinstance(module, BaseTunerLayer)}

    def restore() -> None:
        for layer, is_off in before.items():
            layer._disable_adapters = is_off

    def after_step(done: int) -> None:
        if done == steps:
            restore()

    for layer in before:
        layer._disable_adapters = True
    try:
        yield after_step
    finally:
        restore()
