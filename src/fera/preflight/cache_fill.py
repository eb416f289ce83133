"""Filling the cache of a run beforehand, by several processes or machines."""

import time
from dataclasses import dataclass
from pathlib import Path

from fera.config import TrainConfig
from fera.errors import FeraError
from fera.support.progress import SILENT, Listener
from fera.training.processes.fsdp import check_launch, find_processes
from fera.training.processes.sharing import share_of_launch
from fera.training.start.encoding import cache_folder, encode
from fera.training.start.opening import open_sources


@dataclass(frozen=True)
class Filled:
    """What became of a cache.

    Args:
        folder: the cache.
        part: which part of it was filled, from 1.
        parts: of how many.
        pictures: training and held-out pictures of the run.
        entries: entries that the run needs: latents, captions, masks.
        missing: of those, what other parts are still to bring, as this one saw it at its end.
        seconds: how long it took.
    """

    folder: Path
    part: int
    parts: int
    pictures: int
    entries: int
    missing: int
    seconds: float


def fill_cache(config: TrainConfig, *, part: int = 1, parts: int = 1, listener: Listener = SILENT) -> Filled | None:
    """Encode what a run's cache does not hold.

    Args:
        config: the configuration of the run.
        part: which part to fill, from 1.
        parts: of how many; parts may be filled at once or one after the other, on any machines that share the folder
            or whose folders are copied together afterwards.
        listener: hears what happens, on the main process.

    Returns:
        None on other processes of a launch than the main one.

    Raises:
        FeraError: something in the configuration, the data or the base cannot work, or the cache not be written.
    """
    if not 1 <= part <= parts:
        raise FeraError(f"`part` must be one of the parts, from 1/{parts} to {parts}/{parts}, got {part}/{parts}")
    began = time.monotonic()
    check_launch(config)
    processes = find_processes()
    listener = listener if processes.is_main_process else SILENT
    share = share_of_launch(processes, part, parts)
    with share.in_turn():
        sources = open_sources(config, listener, processes.device)
    encoded = encode(sources, config, processes.device, listener, draws=True, share=share)
    processes.wait_for_everyone()
    if not processes.is_main_process:
        return None
    sets = [one for one in (encoded.training, encoded.held_out) if one is not None]
    cache = encoded.training.cache
    cache.look()
    entries = {name for one in sets for name in one.entries}
    return Filled(
        folder=cache_folder(config),
        part=part,
        parts=parts,
        pictures=len(sources.training) + len(sources.held_out),
        entries=len(entries),
        missing=len(cache.missing(entries)),
        seconds=round(time.monotonic() - began, 1),
    )
