"""What `fera report` does: a run's folder in, one HTML file out."""

from dataclasses import dataclass, field
from pathlib import Path

from fera.errors import FeraError
from fera.report.contents import check_output, gather
from fera.report.drawing import Drawn, Sampling, draw_pictures
from fera.report.folder import Run, read_run
from fera.report.page import render, save
from fera.support.progress import SILENT, Listener


@dataclass(frozen=True)
class ReportRequest:
    """A request for a report.

    Args:
        run: folder of the run.
        output: the HTML file; `report.html` in the run's folder when left out.
        draw: draw fresh pictures; None draws where that is possible, True, or a prompt in `sampling`, fails where it is
            not.
        sampling: what and how to draw.
    """

    run: Path
    output: Path | None = None
    draw: bool | None = None
    sampling: Sampling = field(default_factory=Sampling)


def write_report(request: ReportRequest, listener: Listener = SILENT) -> Path:
    """Write the report of a run.

    Args:
        request: the request of which run, where to.
        listener: hears what happens.

    Returns:
        The HTML file. It needs no other file and no network.

    Raises:
        FeraError: the folder holds no run, the file cannot be written or is not ours to replace, or pictures were
            asked for and cannot be drawn.
    """
    if request.draw is False and request.sampling.prompts:
        raise FeraError("`prompts` were given, and `draw` is off: draw these prompts, or draw nothing")
    run = read_run(request.run)
    output = request.output or request.run / "report.html"
    check_output(output)  # before minutes of drawing
    drawn, problem = _draw(run, request, listener)
    contents = gather(run, drawn, [problem] if problem else [])
    save(render(contents), output)
    for line in contents.problems:
        listener.say(f"note: {line}")
    return output


def _draw(run: Run, request: ReportRequest, listener: Listener) -> tuple[Drawn | None, str | None]:
    """Fresh pictures, or why there are none."""
    if request.draw is False:
        return None, None
    try:
        return draw_pictures(run, request.sampling, listener), None
    except FeraError as error:
        if request.draw or request.sampling.prompts:
            raise
        return None, f"no fresh pictures: {error}"
