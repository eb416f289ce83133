"""The page: addresses to answers. Every address is fixed; what is asked for is named by its query."""

import asyncio
import html
import json
import shlex
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from fera.config.reading import load_config
from fera.errors import FeraError
from fera.report.figures import expert_style
from fera.version import __version__
from fera.web import look
from fera.web.actions import Actions
from fera.web.form import form, presets, section_help, values_of
from fera.web.guard import Guard
from fera.web.jobs import OPEN, Queue
from fera.web.places import Places
from fera.web.runs import RunRow, list_runs, read_row, run_path

# Seconds between looks at the queue.
_TICK = 0.5
_STATIC = {"web.css": "text/css", "web.js": "text/javascript", "report.css": "text/css"}
# A report may hold what a stranger wrote: it is shown, and runs nothing.
_REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; style-src 'unsafe-inline'"

Answer = Callable[[Request], Response]


def make_app(places: Places, queue: Queue, *, hosts: set[str], token: str | None = None) -> Starlette:
    """The page as an ASGI application.

    Args:
        places: the folders that it may touch.
        queue: its jobs.
        hosts: names that it answers to.
        token: what browsers must bring; None where only this machine reaches it.
    """
    pages = _Pages(places, queue)
    actions = Actions(places, queue)

    @asynccontextmanager
    async def life(_app: Starlette) -> AsyncIterator[None]:
        ticking = asyncio.create_task(_tick_on(queue))
        try:
            yield
        finally:
            ticking.cancel()
            with suppress(asyncio.CancelledError):
                await ticking

    got: dict[str, Answer] = {
        "/": pages.runs,
        "/runs/rows": pages.rows,
        "/run": pages.run,
        "/run/live": pages.live,
        "/run/charts": pages.charts,
        "/run/samples": pages.samples,
        "/run/report": pages.report,
        "/compare": pages.compare,
        "/train": pages.train,
        "/job": pages.job,
        "/picture": pages.picture,
        "/static": pages.static,
    }
    names = ("preview", "train", "check", "resume", "stop", "report", "analyze")
    routes = [Route(path, _page(answer), methods=["GET"]) for path, answer in got.items()]
    routes += [Route(f"/do/{name}", _action(getattr(actions, name), queue), methods=["POST"]) for name in names]
    return Starlette(routes=routes, lifespan=life, middleware=[Middleware(Guard, hosts=hosts, token=token)])


async def _tick_on(queue: Queue) -> None:
    while True:
        await run_in_threadpool(queue.tick)
        await asyncio.sleep(_TICK)


def _page(answer: Answer) -> Callable[[Request], Awaitable[Response]]:
    async def asked(request: Request) -> Response:
        try:
            return await run_in_threadpool(answer, request)
        except FeraError as error:
            text = str(error)
        except OSError as error:
            text = f"{error.filename or 'a file'}: {error.strerror or error}. Look at the folder, then reload"
        if request.url.path.count("/") > 1:  # a part of a page
            return HTMLResponse(f'<p class="notice bad" role="alert">{html.escape(text)}</p>', 404)
        return _render("problem.html", 404, text=text, tab="")

    return asked


def _action(do: Callable[[dict[str, Any]], dict[str, str]], queue: Queue) -> Callable[[Request], Awaitable[Response]]:
    async def asked(request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except (ValueError, RecursionError):
            body = None
        if not isinstance(body, dict):
            return JSONResponse({"error": "that was no JSON object; reload the page"}, 400)
        try:
            told = await run_in_threadpool(do, body)
            await run_in_threadpool(queue.tick)
        except FeraError as error:
            return JSONResponse({"error": str(error)}, 400)
        except OSError as error:
            return JSONResponse({"error": f"{error.filename or 'a file'}: {error.strerror or error}"}, 507)
        return JSONResponse(told)

    return asked


class _Pages:
    """Answers to what is looked at."""

    def __init__(self, places: Places, queue: Queue) -> None:
        self._places = places
        self._queue = queue

    def runs(self, _request: Request) -> Response:
        return _render("runs.html", tab="runs", root=self._places.root, **self._listed())

    def rows(self, _request: Request) -> Response:
        return _render("rows.html", **self._listed())

    def _listed(self) -> dict[str, Any]:
        waiting = [job for job in self._queue.jobs if job.state == "queued" and job.trains]
        return {"rows": list_runs(self._places, self._queue), "note": self._queue.note, "waiting": waiting}

    def run(self, request: Request) -> Response:
        row = read_row(self._places, self._queue, _asked(request, "name"))
        parts = {**self._state(row), **self._charts(row), "samples": self._samples(row.name)}
        return _render("run.html", tab="runs", **parts)

    def live(self, request: Request) -> Response:
        return _render("live.html", **self._state(read_row(self._places, self._queue, _asked(request, "name"))))

    def charts(self, request: Request) -> Response:
        return _render("charts.html", **self._charts(read_row(self._places, self._queue, _asked(request, "name"))))

    def samples(self, request: Request) -> Response:
        row = read_row(self._places, self._queue, _asked(request, "name"))
        return _render("samples.html", samples=self._samples(row.name))

    def _samples(self, name: str) -> list[look.Sample]:
        return look.samples(self._places, run_path(self._places, name))

    def _state(self, row: RunRow) -> dict[str, Any]:
        path = run_path(self._places, row.name)
        others = [one for one in self._queue.jobs if one.run == row.name and not one.trains][-1:]
        return {
            "row": row,
            "facts": look.about(row),
            "output": self._output(row),
            "others": [(one, _printed(self._queue, one.id)) for one in others],
            "is_busy": any(one.state in OPEN for one in others),
            "has_report": (path / "report.html").is_file(),
            "has_adapter": (path / "adapter").is_dir(),
        }

    def _charts(self, row: RunRow) -> dict[str, Any]:
        path = run_path(self._places, row.name)
        training, gates = look.figures(path)
        job = self._queue.last_of(row.name)
        command = job.text if job is not None else f"fera train {shlex.quote(row.name)}/config.toml --resume"
        lines = look.log_lines(path)
        return {"training": training, "gates": gates, "lines": lines, "output": self._output(row), "command": command}

    def _output(self, row: RunRow) -> str:
        job = self._queue.last_of(row.name)
        return _printed(self._queue, job.id) if job is not None else ""

    def report(self, request: Request) -> Response:
        path = self._places.inside(run_path(self._places, _asked(request, "name")) / "report.html")
        return HTMLResponse(path.read_bytes(), headers={"Content-Security-Policy": _REPORT_POLICY})

    def compare(self, request: Request) -> Response:
        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if not 2 <= len(names) <= look.MOST_COMPARED:
            raise FeraError(f"choose 2 to {look.MOST_COMPARED} runs in the list to see them side by side")
        rows = [read_row(self._places, self._queue, name) for name in names]
        paths = {row.name: run_path(self._places, row.name) for row in rows}
        return _render(
            "compare.html",
            tab="runs",
            rows=rows,
            figures=look.compared(paths),
            differences=look.differences(list(paths.values())),
            last=[(row.name, self._samples(row.name)[-1:]) for row in rows],
        )

    def train(self, request: Request) -> Response:
        preset, source = request.query_params.get("preset"), request.query_params.get("from")
        known = presets()
        values: dict[str, str] = {}
        if source:
            values = values_of(load_config(run_path(self._places, source) / "config.toml"))
            values["output_dir"] += "-2"
        elif preset:
            if preset not in known:
                raise FeraError(f"there is no preset {preset}; reload the page")
            values = values_of(load_config(known[preset]))
        return _render(
            "train.html",
            tab="train",
            presets=list(known),
            chosen=preset or "",
            sections=form(values),
            about=section_help(),
            root=self._places.root,
        )

    def job(self, request: Request) -> Response:
        id_ = _asked(request, "id")
        job = next((job for job in self._queue.jobs if job.id == id_), None)
        if job is None:
            raise FeraError("there is no such job any more")
        told = {"state": job.state, "is_open": job.state in OPEN, "output": _printed(self._queue, id_)}
        return JSONResponse({**told, "command": job.text})

    def picture(self, request: Request) -> Response:
        path = self._places.inside(_asked(request, "path"))
        kind = look.PICTURES.get(path.suffix.lower())
        if kind is None or not path.is_file():
            raise FeraError("there is no such picture any more")
        return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    def static(self, request: Request) -> Response:
        name = _asked(request, "file")
        if name not in _STATIC:
            raise FeraError("there is no such file")
        return Response(_static(name), media_type=_STATIC[name], headers={"Cache-Control": "private, max-age=3600"})


def _asked(request: Request, name: str) -> str:
    value = request.query_params.get(name, "")
    if not value:
        raise FeraError(f"the address says no {name}; go back to the list")
    return value


def _printed(queue: Queue, id_: str) -> str:
    """What a job printed, without what a bar drew over itself."""
    lines = [line.rpartition("\r")[2] for line in queue.output(id_).replace("\r\n", "\n").split("\n")]
    return "\n".join(lines[-200:]).strip()


def _render(name: str, status: int = 200, **values: Any) -> HTMLResponse:
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
def _static(name: str) -> bytes:
    if name == "report.css":  # the look of reports
        return files("fera.report").joinpath("templates", name).read_bytes()
    return files("fera.web").joinpath("static", name).read_bytes()
