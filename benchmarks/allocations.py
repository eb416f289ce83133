"""Memory of a piece of work, as PyTorch's CPU allocator records it: exact, and the same on every run."""

import json
import os
import tempfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler says that it starts and stops


def peak_allocated(work: Callable[[], object]) -> int:
    """Most bytes that `work` holds at a time beyond what was there before it.

    Counted are all blocks that PyTorch's CPU allocator hands out during the work, with those inside of operators and of
    the backward pass; not counted is what other libraries allocate for themselves, as oneDNN does for scratch.

    Args:
        work: what to watch; what it frees of earlier memory does not count.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        work()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    changes = [event for event in events if event.get("name") == "[memory]"]
    changes.sort(key=lambda event: event["args"]["Ev Idx"])
    return max(accumulate((event["args"]["Bytes"] for event in changes), initial=0))
