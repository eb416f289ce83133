"""Memory of a piece of work, as PyTorch's allocators record it: exact, and the same on every run."""

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says that it starts and stops


def peak_allocated(work: Callable[[], object], device: torch.device) -> int:
    """Most bytes that `work` holds at a time beyond what was there before it.

    Counted are all blocks that PyTorch's allocator hands out during the work, with those inside of operators and of
    the backward pass; not counted is what other libraries allocate for themselves, as oneDNN does for scratch. Blocks
    of a GPU are multiples of 512 bytes.

    Args:
        work: what to watch; what it frees of earlier memory does not count.
        device: whose memory.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["args"]["Ev Idx"])
    return max(accumulate((event["args"]["Bytes"] for event in changes), initial=0))
