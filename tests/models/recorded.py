"""What a pipeline hands to its scheduler."""

from contextlib import contextmanager

import torch


@contextmanager
def recorded_latents(pipe):
    """Latents as the scheduler's steps get them."""
    step, seen = pipe.scheduler.step, []

    def record(model_output, timestep, sample, *args, **kwargs):
        seen.append(sample.clone())
        return step(model_output, timestep, sample, *args, **kwargs)

    pipe.scheduler.step = record
    try:
        yield seen
    finally:
        del pipe.scheduler.step


def stacked(result):
    """A pipeline's result as one tensor: some give one, some a list."""
    return torch.stack(result) if isinstance(result, list) else torch.as_tensor(result)
