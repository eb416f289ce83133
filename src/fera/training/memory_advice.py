"""Which way to hold the base would have fit, once the memory of a device has run out."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from fera.config import TrainConfig
from fera.pipelines.memory import USABLE, Held, device_memory, held, ways_to_hold
from fera.training.failures import is_out_of_memory

_UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@contextmanager
def fitting_named(denoiser: nn.Module, config: TrainConfig, device: torch.device) -> Iterator[None]:
    """Note on errors of a GPU's memory inside the block which way to hold the base would fit.

    Args:
        denoiser: the one that trains.
        config: the configuration of the run.
        device: where it trains.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        total = device_memory(device)
        # What is quantized has lost the numbers of its weights.
        is_plain = not config.has_quantized_base and not config.adapter.full
        if is_out_of_memory(error) and total is not None and is_plain:
            settings, dtype = config.train, next(denoiser.parameters()).dtype
            own = held(denoiser, dtype, "none", settings.offload, settings.blocks_on_device)
            needed = torch.cuda.max_memory_allocated(device) + bytes_asked(str(error))
            ways = ways_to_hold(denoiser, dtype, settings.blocks_on_device)
            error.add_note(first_that_fits(ways, own, needed, total))
        raise


def first_that_fits(ways: Sequence[Held], own: Held, needed: int, total: int) -> str:
    """Say which way to hold the base would have fit.

    Args:
        ways: from the fastest to the smallest.
        own: the run's.
        needed: bytes of the device that the run needed at least when memory ran out, its weights among them.
        total: bytes of the device.
    """
    rest = needed - own.device_bytes
    smaller = [way for way in ways if way.device_bytes < own.device_bytes]
    for way in smaller:
        if way.device_bytes + rest <= USABLE * total:
            return f"Of the ways to hold the base, {way} is the first that would have fit"
    return "No other way to hold the base would have made enough room"


def bytes_asked(message: str) -> int:
    """Bytes that an allocation asked for, as PyTorch's message says; 0 where it does not."""
    found = re.search(r"Tried to allocate ([\d.]+) ([KMG]iB)", message)
    return int(float(found[1]) * _UNITS[found[2]]) if found else 0
