"""Run a script of PEFT's benchmarks where PEFT knows FeRA.

python run_with_fera.py run.py -v experiments/fera/flux2-klein-default
"""

import runpy
import sys
from pathlib import Path

import fera  # noqa: F401  # with it, PEFT knows FeRA


def main(arguments: list[str]) -> None:
    """Run a script as Python would.

    Args:
        arguments: the script, and what it is to be given.
    """
    if not arguments or not Path(arguments[0]).is_file():
        sys.exit(f"give a script of PEFT's benchmark and its arguments; got {arguments}")
    sys.argv = list(arguments)
    sys.path.insert(0, str(Path(arguments[0]).resolve().parent))  # its neighbours, which it imports
    runpy.run_path(arguments[0], run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:])
