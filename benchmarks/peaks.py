"""The most memory that `fera` had at a time, as a process of its own."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

# By the kernel's note of this program. `ru_maxrss` begins with what the process had that started it.
_FERA = """
import sys
from fera.cli import main
code = main(sys.argv[1:])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
sys.exit(code)
"""


def run_fera(arguments: Sequence[object], environment: Mapping[str, str]) -> float:
    """Run `fera` to its end.

    Args:
        arguments: of the command line.
        environment: variables beside this process's own.

    Returns:
        The most resident memory in bytes, pages of mapped files among it.

    Raises:
        SystemExit: it fails, with the end of what it printed.
    """
    command = [sys.executable, "-c", _FERA, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | dict(environment), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"fera ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return int(done.stdout.split()[-1]) * 1024.0
