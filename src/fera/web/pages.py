"""Pages about runs: the list, one run, several side by side, the form; and the files that pages show."""

import shlex
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, Response

from fera.config.reading import load_config
from fera.errors import FeraError
from fera.web import look
from fera.web.form import form, presets, section_help, values_of
from fera.web.jobs import OPEN, Queue
from fera.web.places import Places
from fera.web.rendering import asked, printed, render, static_file
from fera.web.runs import RunRow, list_runs, read_row, run_path
from fera.web.thumbs import Thumbs

_STATIC = {
    "web.css": "text/css",
    "report.css": "text/css",
    **dict.fromkeys(("web.js", "draw.js", "data.js", "mask.js", "png.js"), "text/javascript"),
}
# Longer side of a picture that is painted on.
_VIEW = 1024
# A report may hold what a stranger wrote: it is shown, and runs nothing.
_REPORT_POLICY = "sandbox; default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"


class Pages:
    """Answers to what is looked at."""

    def __init__(self, places: Places, queue: Queue, thumbs: Thumbs) -> None:
        self._thumbs = thumbs
        self._places = places
        self._queue = queue

    def runs(self, _request: Request) -> Response:
        """The list of runs."""
        return render("runs.html", tab="runs", root=self._places.root, **self._listed())

    def rows(self, _request: Request) -> Response:
        """Its rows alone."""
        return render("rows.html", **self._listed())

    def _listed(self) -> dict[str, Any]:
        waiting = [job for job in self._queue.jobs if job.state == "queued" and job.trains]
        return {"rows": list_runs(self._places, self._queue), "note": self._queue.note, "waiting": waiting}

    def run(self, request: Request) -> Response:
        """One run."""
        row = read_row(self._places, self._queue, asked(request, "name"))
        parts = {**self._state(row), **self._charts(row), "samples": self._samples(row.name)}
        return render("run.html", tab="runs", **parts)

    def live(self, request: Request) -> Response:
        """Its state and buttons."""
        return render("live.html", **self._state(read_row(self._places, self._queue, asked(request, "name"))))

    def charts(self, request: Request) -> Response:
        """Its curves and its log."""
        return render("charts.html", **self._charts(read_row(self._places, self._queue, asked(request, "name"))))

    def samples(self, request: Request) -> Response:
        """Its samples over the steps."""
        row = read_row(self._places, self._queue, asked(request, "name"))
        return render("samples.html", samples=self._samples(row.name))

    def _samples(self, name: str) -> list[look.Sample]:
        return look.samples(self._places, run_path(self._places, name))

    def _state(self, row: RunRow) -> dict[str, Any]:
        path = run_path(self._places, row.name)
        others = [one for one in self._queue.jobs if one.run == row.name and not one.trains][-1:]
        output = self._output(row)
        return {
            "row": row,
            "facts": look.about(row),
            "output": output,
            # A run takes its folder before it says a word.
            "is_gone": row.state in ("starting", "stopping") and bool(output) and not path.is_dir(),
            "is_killed": row.state == "failed" and "error: " not in output,
            "others": [(one, printed(self._queue, one.id)) for one in others],
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
        return printed(self._queue, job.id) if job is not None else ""

    def report(self, request: Request) -> Response:
        """The report that was written of it."""
        path = self._places.inside(run_path(self._places, asked(request, "name")) / "report.html")
        return HTMLResponse(path.read_bytes(), headers={"Content-Security-Policy": _REPORT_POLICY})

    def compare(self, request: Request) -> Response:
        """Several runs side by side."""
        names = list(dict.fromkeys(request.query_params.getlist("run")))
        if not 2 <= len(names) <= look.MOST_COMPARED:
            raise FeraError(f"choose 2 to {look.MOST_COMPARED} runs in the list to see them side by side")
        rows = [read_row(self._places, self._queue, name) for name in names]
        paths = {row.name: run_path(self._places, row.name) for row in rows}
        return render(
            "compare.html",
            tab="runs",
            rows=rows,
            figures=look.compared(paths),
            differences=look.differences(list(paths.values())),
            last=[(row.name, self._samples(row.name)[-1:]) for row in rows],
        )

    def train(self, request: Request) -> Response:
        """The form, empty or begun with a preset or a run."""
        preset, source = request.query_params.get("preset"), request.query_params.get("from")
        known = presets()
        values: dict[str, str] = {}
        if source:
            values = values_of(load_config(run_path(self._places, source) / "config.toml"))
            values["output_dir"] += "-2"
        elif folder := request.query_params.get("data"):
            values = {"data.train_data_dir": folder}
        elif preset:
            if preset not in known:
                raise FeraError(f"there is no preset {preset}; reload the page")
            values = values_of(load_config(known[preset]))
        return render(
            "train.html",
            tab="train",
            presets=list(known),
            chosen=preset or "",
            sections=form(values),
            about=section_help(),
            root=self._places.root,
        )

    def job(self, request: Request) -> Response:
        """What a job says."""
        id_ = asked(request, "id")
        job = next((job for job in self._queue.jobs if job.id == id_), None)
        if job is None:
            raise FeraError("there is no such job any more")
        told = {"state": job.state, "is_open": job.state in OPEN, "output": printed(self._queue, id_)}
        return JSONResponse({**told, "command": job.text})

    def picture(self, request: Request) -> Response:
        """A picture of the folders."""
        path = self._places.inside(asked(request, "path"))
        kind = look.PICTURES.get(path.suffix.lower())
        if kind is None or not path.is_file():
            raise FeraError("there is no such picture any more")
        return Response(path.read_bytes(), media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    def clip(self, request: Request) -> Response:
        """A clip that was drawn; browsers ask for parts of it."""
        path = self._places.inside(asked(request, "path"))
        if path.suffix.lower() != ".mp4" or not path.is_file():
            raise FeraError("there is no such clip any more")
        return FileResponse(path, media_type="video/mp4", headers={"Cache-Control": "private, max-age=3600"})

    def sound(self, request: Request) -> Response:
        """A sound of the folders, or one that was drawn; browsers ask for parts of it."""
        path = self._places.inside(asked(request, "path"))
        kind = look.SOUNDS.get(path.suffix.lower())
        if kind is None or not path.is_file():
            raise FeraError("there is no such sound any more")
        return FileResponse(path, media_type=kind, headers={"Cache-Control": "private, max-age=3600"})

    def thumb(self, request: Request) -> Response:
        """A picture made small."""
        small = self._thumbs.of(self._places.inside(asked(request, "path")))
        return Response(small, media_type="image/webp", headers={"Cache-Control": "private, max-age=86400"})

    def view(self, request: Request) -> Response:
        """A picture as training sees it, not larger than it must be: upright, in a format that every browser shows."""
        seen = self._thumbs.of(self._places.inside(asked(request, "path")), _VIEW)
        return Response(seen, media_type="image/webp", headers={"Cache-Control": "private, max-age=3600"})

    def static(self, request: Request) -> Response:
        """A script or style sheet."""
        name = asked(request, "file")
        if name not in _STATIC:
            raise FeraError("there is no such file")
        return Response(static_file(name), media_type=_STATIC[name], headers={"Cache-Control": "private, max-age=3600"})
