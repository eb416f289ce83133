"""From templates to answers, and what pages share: what is asked of them, what a command printed."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from fera.errors import FeraError
from fera.report.figures import expert_style
from fera.version import __version__
from fera.web.jobs import Queue


def asked(request: Request, name: str) -> str:
    """A part of the address's query.

    Raises:
        FeraError: it is missing.
    """
    value = request.query_params.get(name, "")
    if not value:
        raise FeraError(f"the address says no {name}; go back to the list")
    return value


def printed(queue: Queue, id_: str) -> str:
    """What a job printed, without what a bar drew over itself."""
    lines = [line.rpartition("\r")[2] for line in queue.output(id_).replace("\r\n", "\n").split("\n")]
    return "\n".join(lines[-200:]).strip()


def render(name: str, status: int = 200, **values: Any) -> HTMLResponse:
    """A page from its template, whose texts are escaped."""
    return HTMLResponse(_environment().get_template(name).render(**values), status)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(_template),
        autoescape=True,
        undefined=StrictUndefined,  # a mistyped name is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(expert_style=expert_style, version=__version__)
    return environment


def _template(name: str) -> str:
    return files("fera.web").joinpath("templates", name).read_text(encoding="utf-8")


@cache
def static_file(name: str) -> bytes:
    """A script or style sheet that comes with fera."""
    if name == "report.css":  # the look of reports
        return files("fera.report").joinpath("templates", name).read_bytes()
    return files("fera.web").joinpath("static", name).read_bytes()
