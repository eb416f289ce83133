"""What other commands have left in a run's folder: `fera evaluate` and `fera analyze`."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fera.report.folder import read_json
from fera.report.log import number
from fera.report.pictures import Picture, embed_file

# Longest side of an embedded plot.
_PLOT_SIDE = 1400
_PLOTS = {
    "energies.png": "Band energies along the denoising steps",
    "reconstruction.png": "Band energies of a one-step reconstruction from each noise level",
    "gates.png": "Gates along the denoising steps",
    "experts.png": "What each expert draws alone",
    "experts-weights.png": "Sizes and likeness of the experts' weight updates",
}
# Names of metrics as people say them, and in which direction they are better.
_METRICS = {
    "loss": "held-out loss (lower is better)",
    "fid": "FID (lower is better)",
    "kid": "KID (lower is better)",
    "style_score": "style score, 0 to 1 (higher is better)",
    "concept_score": "concept score, 0 to 1 (higher is better)",
    "concept_top1": "right concept comes first",
    "concept_top5": "right concept among the first five",
    "concept_score_other_styles": "concept score among other styles",
    "text_score": "CLIP score of picture and prompt (higher is better)",
    "diversity_within_prompt": "diversity within a prompt",
    "diversity_between_prompts": "diversity between prompts",
    "seconds_per_image": "seconds a picture",
}
# How deep to look for evaluations in a file that somebody else may have written.
_DEPTH = 4


@dataclass(frozen=True)
class Evaluations:
    """Metrics side by side.

    Args:
        names: the names of what was evaluated.
        rows: metric and its value for each of `names`, as text; "–" where it is not known.
    """

    names: list[str] = field(default_factory=list)
    rows: list[tuple[str, list[str]]] = field(default_factory=list)


@dataclass(frozen=True)
class Analysis:
    """What `fera analyze` found.

    Args:
        words: its sentences by heading.
        plots: its plots, with titles as alternative text.
    """

    words: dict[str, list[str]] = field(default_factory=dict)
    plots: list[Picture] = field(default_factory=list)


def read_evaluations(folder: Path, problems: list[str]) -> Evaluations:
    """Read evaluation.json, in the run's folder or in its folder `evaluation`.

    Args:
        folder: the folder of the run.
        problems: gets a line where a file is damaged, or holds no evaluation.
    """
    for path in (folder / "evaluation.json", folder / "evaluation" / "evaluation.json"):
        if path.is_file() and (value := read_json(path, problems)):
            found = list(_evaluations(value, "", _DEPTH))
            if not found:
                problems.append(f"{path.name} holds no evaluation that can be shown")
            return _side_by_side(found)
    return Evaluations()


def read_analysis(folder: Path, problems: list[str]) -> Analysis:
    """Read analysis.json and the plots beside it, in the run's folder or in its folder `analysis`.

    Args:
        folder: the folder of the run.
        problems: gets a line for each file that is damaged.
    """
    for home in (folder, folder / "analysis"):
        path = home / "analysis.json"
        if path.is_file():
            return Analysis(_words(read_json(path, problems).get("words")), _plots(home, problems))
    return Analysis()


def _evaluations(value: object, name: str, depth: int) -> Iterator[tuple[str, dict[str, Any]]]:
    """Evaluations in a JSON value, however they are laid out: one, a list of them, or by name."""
    if depth == 0:
        return
    if isinstance(value, dict):
        if "loss" in value and "loss_by_band" in value:
            yield str(value.get("name") or name or "adapter"), value
            return
        own = str(value.get("name") or value.get("adapter") or name)
        for key, inner in value.items():
            yield from _evaluations(inner, own if key == "evaluation" else str(key), depth - 1)
    elif isinstance(value, list):
        for place, inner in enumerate(value, start=1):
            yield from _evaluations(inner, f"{name} {place}".strip(), depth - 1)


def _side_by_side(found: list[tuple[str, dict[str, Any]]]) -> Evaluations:
    rows = []
    for key, label in _METRICS.items():
        values = [number(evaluation.get(key)) for _, evaluation in found]
        if any(value is not None for value in values):
            rows.append((label, ["–" if value is None else f"{value:.4g}" for value in values]))
    return Evaluations([name for name, _ in found], rows)


def _words(value: object) -> dict[str, list[str]]:
    """Sentences by heading; what is none is left out."""
    if not isinstance(value, dict):
        return {}
    found = {
        heading: [text for text in texts if isinstance(text, str)]
        for heading, texts in value.items()
        if isinstance(texts, list)
    }
    return {heading: texts for heading, texts in found.items() if texts}


def _plots(home: Path, problems: list[str]) -> list[Picture]:
    plots = []
    for name, title in _PLOTS.items():
        if (home / name).is_file():
            try:
                plots.append(embed_file(home / name, title, _PLOT_SIDE))
            except ValueError as error:
                problems.append(str(error))
    return plots
