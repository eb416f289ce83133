"""`fera web`."""

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path

from fera.errors import FeraError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument(
        "root", nargs="?", type=Path, default=Path(), metavar="FOLDER", help="where runs and data are (here)"
    )
    parser.add_argument(
        "--also",
        nargs="+",
        type=Path,
        default=[],
        metavar="FOLDER",
        help="folders of data and bases outside of it that runs may read",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address; any but this machine's own needs a token (%(default)s)"
    )
    parser.add_argument("--port", type=int, default=7373, help="0 takes a free one (%(default)s)")
    parser.add_argument(
        "--token", action="store_true", help="ask for a token on this machine too, as where others log in"
    )


def run(arguments: argparse.Namespace) -> int:
    """Serve the page."""
    if sys.platform == "win32":
        raise FeraError("fera web runs on Linux and macOS; on Windows, run it in WSL")
    missing = [name for name in ("starlette", "uvicorn") if find_spec(name) is None]
    if missing:
        raise FeraError(f"fera web needs {', '.join(missing)}, which is not installed: pip install 'fera[web]'")

    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.web.server import WebRequest, serve

    request = WebRequest(arguments.root, arguments.also, arguments.host, arguments.port, arguments.token)
    with Terminal() as terminal:
        serve(request, terminal)
    return 0
