"""Serving the page: an address that is free, a token where others reach it, and nothing told to anybody else."""

import errno
import hashlib
import os
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from fera.errors import FeraError
from fera.support.progress import SILENT, Listener
from fera.web.app import make_app
from fera.web.guard import is_loopback, own_names
from fera.web.jobs import Queue
from fera.web.places import Places


@dataclass(frozen=True)
class WebRequest:
    """A request for a page.

    Args:
        root: the folder whose runs are shown, and in which commands run.
        also: folders outside it that data and bases may be in.
        host: the address to bind to.
        port: likewise; 0 takes a free one.
        token: ask browsers for a token on this machine's own address too.
    """

    root: Path
    also: Sequence[Path] = ()
    host: str = "127.0.0.1"
    port: int = 7373
    token: bool = False


def serve(request: WebRequest, listener: Listener = SILENT) -> None:
    """Serve the page until it is interrupted. Runs that it started go on.

    Args:
        request: what, and where.
        listener: hears the address.

    Raises:
        FeraError: a folder is missing, or another page has it; the address cannot be bound to.
    """
    places = Places(request.root, request.also)
    bound = _bind(request.host, request.port)
    queue = Queue(places.root, _kept(places.root))
    try:
        token = secrets.token_urlsafe(24) if request.token or not is_loopback(request.host) else None
        app = make_app(places, queue, hosts=own_names(request.host), token=token)
        listener.say(f"fera's page of {places.root}: {_address(request.host, bound.getsockname()[1], token)}")
        listener.say("Ctrl-C closes the page; runs go on")
        config = uvicorn.Config(
            app, log_level="warning", access_log=False, server_header=False, lifespan="on", proxy_headers=False
        )
        uvicorn.Server(config).run(sockets=[bound])
    finally:
        queue.close()
        bound.close()


def _bind(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        bound.listen()  # a second page is refused here, not when its first browser comes
    except OSError as error:
        bound.close()
        if error.errno == errno.EADDRINUSE:
            raise FeraError(f"`port` {port} of {host} is in use; give another, or 0 for a free one") from None
        raise FeraError(f"cannot serve on {host}, port {port}: {error.strerror or error}") from error
    except OverflowError:
        bound.close()
        raise FeraError(f"`port` {port} is no port: give 0 to 65535") from None
    return bound


def _address(host: str, port: int, token: str | None) -> str:
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    name = f"[{name}]" if ":" in name else name
    return f"http://{name}:{port}/" + (f"?token={token}" if token else "")


def _kept(root: Path) -> Path:
    """Where the jobs of a folder are kept: with the user, for commands must not come with a folder from elsewhere."""
    own = os.environ.get("FERA_CACHE")
    cache = Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "fera")
    return cache.expanduser() / "web" / hashlib.sha256(str(root).encode()).hexdigest()[:16]
