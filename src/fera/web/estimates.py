"""What a run will cost, while its form is filled in: `fera data check` in the background, the newest form alone."""

import threading
from collections.abc import Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from fera.errors import FeraError
from fera.support.durations import about_time
from fera.support.files import replace_text
from fera.web.checks import read_json
from fera.web.form import read_form, to_short_toml
from fera.web.jobs import OPEN, Queue
from fera.web.places import Places
from fera.web.rendering import asked, printed

_LINE = "estimate"
_MOST_BYTES = 2**26
# Names of files: a form that is changed while the one before is read must not be read in its place.
_FILES = 4


class Estimates:
    """What the form asks for, and is told.

    Args:
        places: where it may be done.
        queue: takes the checks, one at a time; of those that wait, the newest stays.
    """

    def __init__(self, places: Places, queue: Queue) -> None:
        self._places = places
        self._queue = queue
        self._mutex = threading.Lock()
        self._number = 0

    def ask(self, given: Mapping[str, Any]) -> dict[str, str]:
        """Estimate what a form would cost; what is still being estimated for an earlier one is given up."""
        values = given.get("values")
        if not isinstance(values, dict):
            raise FeraError("the form was not sent whole; reload the page")
        config = read_form(values)
        self._places.check(config)
        with self._mutex:
            for job in self._queue.jobs:
                if job.line == _LINE and job.state in ("queued", "running"):
                    self._queue.stop(job.id)
            self._number = (self._number + 1) % _FILES
            path = self._queue.folder / f"estimate-{self._number}.toml"
            try:
                replace_text(path, to_short_toml(config))
            except OSError as error:
                raise FeraError(f"cannot write {path}: {error.strerror or error}. Make room, then try again") from error
            job = self._queue.add(("data", "check", str(path), "--json"), "", trains=False, line=_LINE)
        return {"job": job.id}

    def told(self, request: Request) -> Response:
        """What is known of an estimate that was asked for."""
        job = self._queue.job(asked(request, "job"))
        if job is None or job.line != _LINE:
            raise FeraError("there is no such estimate any more")
        if job.state in OPEN:
            return JSONResponse({"is_open": True})
        if job.state == "stopped":  # for a newer one
            return JSONResponse({"is_open": False, "facts": [], "problems": []})
        report = read_json(self._queue.output(job.id, most=_MOST_BYTES))
        if not isinstance(report, dict):
            said = printed(self._queue, job.id).removeprefix("error: ")
            return JSONResponse(
                {"is_open": False, "facts": [], "problems": [said.split("\n")[-1] or "it was broken off"]}
            )
        return JSONResponse({"is_open": False, "facts": _facts(report), "problems": list(report.get("problems", []))})


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    facts = [("pictures", f"{report.get('pictures', 0):,}")]
    costs = report.get("estimates")
    if isinstance(costs, dict):
        facts += [
            ("memory, without activations", _gigabytes(costs["memory_bytes"])),
            *((f"with {_way(held)}", _gigabytes(memory)) for held, memory in costs["choices"]),
            ("trained parameters", f"{costs['trained_parameters']:,}"),
            ("a step", about_time(costs["step_seconds"]).removeprefix("about ")),
            ("training", about_time(costs["training_seconds"])),
            ("encoding first", about_time(costs["encoding_seconds"])),
            ("cache on disk", _gigabytes(costs["cache_bytes"])),
            ("on", str(costs["device"])),
        ]
    return facts


def _way(held: Mapping[str, Any]) -> str:
    """How a denoiser could be held, by the settings for it."""
    settings = {"quantization": held["quantization"], "train.offload": held["offload"]}
    return ", ".join(f"{name} = {value}" for name, value in settings.items() if value != "none")


def _gigabytes(count: float) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.3g} MB"
