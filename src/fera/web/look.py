"""What is shown of a run: its charts, its pictures, its log in words, and several runs side by side."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from markupsafe import Markup

from fera.report.charts import Line, line_chart
from fera.report.figures import EXPERT_COLOURS, Figure, gate_figures, routing_figures, training_figures
from fera.report.log import Log, number
from fera.report.routing import read_curves
from fera.report.scales import smooth
from fera.report.settings import read_settings
from fera.web.places import Places
from fera.web.runs import RunRow, log_of

# Runs that are shown side by side at most: as many as there are colours that can be told apart.
MOST_COMPARED = EXPERT_COLOURS
_LOG_LINES = 12
# Where gates along the denoising steps are kept, the newer first.
_TRACES = ("gates.csv", "analysis/gates.csv")
_MOST_SAMPLES = 400
_MOST_HEARD = 16  # of one step
PICTURES = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".gif": "image/gif",
}
# What browsers play.
SOUNDS = {
    ".wav": "audio/wav",
    ".flac": "audio/flac",
    ".mp3": "audio/mpeg",
    **dict.fromkeys((".ogg", ".oga", ".opus"), "audio/ogg"),
    ".m4a": "audio/mp4",
    ".aac": "audio/aac",
}


@dataclass(frozen=True)
class Sample:
    """Pictures that were drawn along the way.

    Args:
        step: when.
        path: relative to the root, or absolute.
        version: changes when the file does.
        sounds: paths of the sounds that it shows, in the order of the prompts.
    """

    step: int
    path: str
    version: int
    sounds: tuple[str, ...] = ()


def figures(path: Path) -> tuple[list[Figure], list[Figure]]:
    """Charts of a run: of its training, and of its gates; drawn again only once its files changed.

    Args:
        path: folder of the run.
    """
    return _figures(path, tuple(map(_stamp, (path / "log.jsonl", *(path / name for name in _TRACES)))))


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=32)
def _figures(path: Path, _stamps: object) -> tuple[list[Figure], list[Figure]]:
    log = log_of(path)
    problems: list[str] = []
    curves = next(filter(None, (read_curves(path / name, problems) for name in _TRACES)), [])
    routing = [figure for curve in curves for figure in routing_figures(curve)]
    return training_figures(log, _held_out(log)), [*gate_figures(log), *routing]


def samples(places: Places, path: Path) -> list[Sample]:
    """Pictures that a run drew along the way, the oldest first; links out of the folders are left out."""
    found = []
    folder = path / "samples"
    for file in sorted(folder.glob("step-*.png"))[-_MOST_SAMPLES:] if folder.is_dir() else ():
        digits = file.stem.removeprefix("step-")
        if digits.isdecimal() and not file.is_symlink():
            try:
                heard = [one for one in sorted(folder.glob(f"{file.stem}-*.wav")) if not one.is_symlink()]
                sounds = tuple(places.name(one) for one in heard[:_MOST_HEARD])
                found.append(Sample(int(digits), places.name(file), file.stat().st_mtime_ns, sounds))
            except OSError:
                continue  # replaced just now
    return found


def log_lines(path: Path) -> list[str]:
    """The last lines of a run's log, in words."""
    return [_in_words(record) for record in log_of(path).records[-_LOG_LINES:]][::-1]


def compared(paths: dict[str, Path]) -> list[Figure]:
    """Losses of several runs over one pair of axes each.

    Args:
        paths: folders by the names of the runs.
    """
    logs = {name: log_of(path) for name, path in paths.items()}
    lines = {
        "Held-out loss": [Line(name, list(_held_out(log)), _style(n)) for n, (name, log) in enumerate(logs.items())],
        "Training loss, smoothed": [
            Line(name, _smoothed(log), _style(number_)) for number_, (name, log) in enumerate(logs.items())
        ],
        "Entropy of the gate": [
            Line(name, log.series("gate_entropy"), _style(number_)) for number_, (name, log) in enumerate(logs.items())
        ],
    }
    return [figure for title, group in lines.items() if (figure := _figure(title, group)) is not None]


def differences(paths: Sequence[Path]) -> list[tuple[str, list[str]]]:
    """Settings in which runs differ: names, and the value of each run; "" where it has none."""
    settings = [{one.name: one.value for one in read_settings(path / "config.toml")[1]} for path in paths]
    names = list(dict.fromkeys(name for one in settings for name in one))
    rows = [(name, [one.get(name, "") for one in settings]) for name in names]
    return [(name, values) for name, values in rows if len(set(values)) > 1]


def about(row: RunRow) -> list[tuple[str, str]]:
    """Facts at the head of a run's page."""
    facts = [("step", f"{row.step:,}" + (f" of {row.steps:,}" if row.steps else ""))]
    if row.loss is not None:
        facts.append(("training loss", f"{row.loss:.4f}"))
    if row.held_out is not None:
        facts.append(("held-out loss", f"{row.held_out:.4f}"))
    if row.gates:
        facts.append(("gates", " · ".join(f"{gate:.2f}" for gate in row.gates[:EXPERT_COLOURS])))
    return facts


def _held_out(log: Log) -> list[tuple[float, float]]:
    return [(step, loss) for step, loss in log.series("held_out_loss") if loss is not None]


def _smoothed(log: Log) -> list[tuple[float, float | None]]:
    raw = log.series("loss")
    averages = smooth([value for _, value in raw], max(1.0, len(raw) / 25))
    return [(step, value) for (step, _), value in zip(raw, averages, strict=True)]


def _style(index: int) -> str:
    return f"expert-{index % EXPERT_COLOURS + 1}"


def _figure(title: str, lines: list[Line]) -> Figure | None:
    drawn = [line for line in lines if line.last is not None]
    if not drawn:
        return None
    description = f"{title} of {', '.join(line.label for line in drawn)}"
    svg = line_chart(drawn, description=description, x_label="step", y_label=title.partition(",")[0].lower())
    legend = [(line.style, line.label, f"{line.last:.4g}") for line in drawn]
    return Figure(title, Markup(svg), "", legend)


def _in_words(record: dict[str, object]) -> str:
    parts = [f"step {record['step']:,}"]
    for key, value in record.items():
        if key == "step":
            continue
        if (single := number(value)) is not None:
            parts.append(f"{key.replace('_', ' ')} {single:.4g}")
        elif isinstance(value, list):
            texts = [f"{one:.2f}" for item in value[:16] if (one := number(item)) is not None]
            parts += [f"{key.replace('_', ' ')} {' '.join(texts)}"] if texts else []
        elif isinstance(value, str):
            parts.append(f"{key.replace('_', ' ')} {value[:200]}")
    return " · ".join(parts)
