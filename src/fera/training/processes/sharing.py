"""What the processes of a launch share of the work before the first step."""

from accelerate import PartialState

from fera.data.cache.share import Share


def share_of_launch(processes: PartialState, part: int = 1, parts: int = 1) -> Share:
    """What a process encodes of what a cache lacks.

    Args:
        processes: this process among those of its launch.
        part: which part of the whole the launch does, from 1.
        parts: how many launches there are, on this machine or on others; after one of several the cache is not full.
    """
    count = processes.num_processes
    return Share(
        number=(part - 1) * count + processes.process_index,
        count=parts * count,
        wait=processes.wait_for_everyone,
        has_others=count > 1 and parts == 1,
        leads=processes.is_main_process,
    )
