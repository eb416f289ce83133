"""What the page shows, gathered from a run and from fresh pictures, ready for the template."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from fera.errors import FeraError
from fera.report.drawing import Drawn
from fera.report.extras import Analysis, Evaluations, read_analysis, read_evaluations
from fera.report.figures import Figure, gate_figures, routing_figures, training_figures
from fera.report.folder import Run, read_json
from fera.report.log import number
from fera.report.pictures import Picture, embed, embed_file, with_sounds
from fera.report.settings import Setting
from fera.report.stages import Stages, read_stages
from fera.report.verdict import Fact, Notice, facts, notices
from fera.traces.curves import RoutingCurves

# Longest sides of embedded pictures: one of a pair, a grid, an example.
_PAIR_SIDE, _GRID_SIDE, _EXAMPLE_SIDE = 512, 1400, 160
# Least side of a drawn picture; small ones are enlarged by a whole factor, so that pixels stay even.
_LEAST_SIDE = 128
_MOST_SAMPLES = 24


@dataclass(frozen=True)
class Card:
    """One prompt, drawn in several ways.

    Args:
        prompt: what was asked for.
        pictures: by how they came about: "base", "adapted", "real".
    """

    prompt: str
    pictures: dict[str, Picture]


@dataclass(frozen=True)
class Contents:
    """Everything that the template reads.

    Args:
        name: the name of the run.
        base: that it adapts.
        notices: what to know first.
        facts: numbers at the top.
        cards: base and adapted side by side.
        cards_made: how they were drawn.
        grid: the demo's grid, where there is one.
        training: charts of the optimization.
        stages: the stages of the run.
        samples: step and picture, drawn along the way.
        samples_left_out: how many more there are.
        gates: charts of the gates over training.
        routing: adapter, and charts along the denoising steps.
        is_routed: whether the run has a gate.
        evaluations: what `fera evaluate` left.
        analysis: what `fera analyze` left.
        examples: training pictures and their captions.
        counts: how many training and held-out pictures there are now.
        adapter: facts about the adapter by section.
        settings: keys of the configuration.
        versions: the versions of the libraries.
        problems: what is missing or damaged.
    """

    name: str
    base: str
    notices: list[Notice]
    facts: list[Fact]
    cards: list[Card]
    cards_made: str
    grid: Picture | None
    training: list[Figure]
    stages: Stages
    samples: list[tuple[int, Picture]]
    samples_left_out: int
    gates: list[Figure]
    routing: list[tuple[str, list[Figure]]]
    is_routed: bool
    evaluations: Evaluations
    analysis: Analysis
    examples: list[tuple[str, Picture]]
    counts: tuple[int, int]
    adapter: dict[str, list[tuple[str, str]]]
    settings: list[Setting]
    versions: list[tuple[str, str]]
    problems: list[str]


def gather(run: Run, drawn: Drawn | None, problems: Sequence[str] = ()) -> Contents:
    """Turn a run into what the page shows.

    Args:
        run: as read from its folder.
        drawn: fresh pictures of it, if there are any.
        problems: more lines for the list of what is missing.
    """
    found = [*run.problems, *problems]
    curves = drawn.curves if drawn else run.curves
    samples, left_out = _samples(run, found)
    return Contents(
        name=run.name,
        base=str(run.config.base if run.config else run.summary.get("base") or "unknown"),
        notices=notices(run, curves),
        facts=facts(run),
        cards=_cards(run, drawn, found) if drawn else [],
        cards_made=drawn.made if drawn else "",
        grid=_grid(run, found),
        training=training_figures(run.log, run.held_out()),
        stages=read_stages(run.folder.path, run.log, found),
        samples=samples,
        samples_left_out=left_out,
        gates=gate_figures(run.log),
        routing=[(_title(curve, curves), routing_figures(curve)) for curve in curves],
        is_routed=run.is_routed,
        evaluations=read_evaluations(run.folder.path, found),
        analysis=read_analysis(run.folder.path, found),
        examples=_examples(run, found),
        counts=(len(run.pictures.training), len(run.pictures.held_out)),
        adapter=_adapter_facts(run.adapter),
        settings=run.settings,
        versions=_versions(run),
        problems=found,
    )


def _title(curve: RoutingCurves, curves: Sequence[RoutingCurves]) -> str:
    return curve.adapter if len(curves) > 1 else ""


def _cards(run: Run, drawn: Drawn, problems: list[str]) -> list[Card]:
    cards = []
    for prompt, base, adapted in zip(drawn.prompts, drawn.base, drawn.adapted, strict=True):
        pictures = {
            "base": embed(_enlarged(base), f"{prompt}, drawn by the base", _PAIR_SIDE),
            "adapted": embed(_enlarged(adapted), f"{prompt}, drawn with the adapter", _PAIR_SIDE),
        }
        if (example := run.pictures.real(prompt)) is not None:
            try:
                pictures["real"] = embed_file(example.image, f"{prompt}, a real picture", _PAIR_SIDE)
            except ValueError as error:
                problems.append(str(error))
        cards.append(Card(prompt, pictures))
    return cards


def _enlarged(image: Image.Image) -> Image.Image:
    factor = max(1, -(-_LEAST_SIDE // max(image.size)))
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.LANCZOS) if factor > 1 else image


def _grid(run: Run, problems: list[str]) -> Picture | None:
    path = run.folder.path / "grid.png"
    if not path.is_file():
        return None
    try:
        return embed_file(path, "The same prompts and seeds: base, adapted, and real pictures", _GRID_SIDE)
    except ValueError as error:
        problems.append(str(error))
        return None


def _has_prompt(image: object) -> bool:
    return isinstance(image, dict) and isinstance(image.get("prompt"), str)


def _samples(run: Run, problems: list[str]) -> tuple[list[tuple[int, Picture]], int]:
    """Pictures drawn along the way; of very many the first, the last, and some spread between."""
    paths = run.samples
    if len(paths) > _MOST_SAMPLES:
        paths = [paths[index * (len(paths) - 1) // (_MOST_SAMPLES - 1)] for index in range(_MOST_SAMPLES)]
    samples = []
    for path in paths:
        told = read_json(path.with_suffix(".json"), problems).get("images")
        drawn = [image["prompt"] for image in told if _has_prompt(image)] if isinstance(told, list) else []
        prompts = ", ".join(drawn) or "the validation prompts"
        digits = path.stem.removeprefix("step-")
        try:
            step = int(digits)
            picture = embed_file(path, f"Step {step:,}: {prompts}", _GRID_SIDE)
            if path in (paths[0], paths[-1]):  # the first and the last are heard: sounds are large
                picture = with_sounds(picture, _sounds(path, drawn))
            samples.append((step, picture))
        except ValueError as error:
            problems.append(f"samples: {error if digits.isdecimal() else f'{path.name} has no step in its name'}")
    return samples, len(run.samples) - len(paths)


def _sounds(path: Path, prompts: Sequence[str]) -> dict[str, Path]:
    """Sounds beside a picture of their spectrograms, by prompt."""
    files = {prompt: path.with_name(f"{path.stem}-{number:03d}.wav") for number, prompt in enumerate(prompts)}
    return {prompt: file for prompt, file in files.items() if file.is_file()}


def _examples(run: Run, problems: list[str]) -> list[tuple[str, Picture]]:
    examples = []
    for example in run.pictures.some():
        try:
            picture = embed_file(
                example.image,
                f"Training {'picture' if example.sound is None else 'sound'}: {example.caption}",
                _EXAMPLE_SIDE,
            )
        except ValueError as error:
            problems.append(f"training picture {error}")
        else:
            examples.append((example.caption, picture))
    return examples


def _adapter_facts(adapter: Mapping[str, Mapping[str, Any]]) -> dict[str, list[tuple[str, str]]]:
    return {
        section: [(name.replace("_", " "), _fact(value)) for name, value in entries.items()]
        for section, entries in adapter.items()
        if section != "versions"
    }


def _fact(value: object) -> str:
    if value in (None, [], ""):
        return "none"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, bool) or number(value) is None:
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.6g}"


def _versions(run: Run) -> list[tuple[str, str]]:
    told = run.summary.get("versions")
    versions = told if isinstance(told, dict) else run.adapter.get("versions", {})
    return [(str(name), str(version)) for name, version in versions.items() if version]


def check_output(path: Path) -> None:
    """Refuse to replace a file that is no report.

    Raises:
        FeraError: it is a folder or another file.
    """
    if path.is_dir():
        raise FeraError(f"`output` {path} is a folder; give a file such as {path / 'report.html'}")
    if path.is_file() and GENERATOR not in path.read_bytes()[:2000]:
        raise FeraError(f"{path} exists and is no report of fera; give another `output`")


# How a report is known as one.
GENERATOR = b'name="generator" content="fera report"'
