"""What `fera evaluate` does: one base, several adapters, one folder of pictures; a table and files out."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from fera.config import DataConfig
from fera.data.checking import find_examples
from fera.data.images import load_image
from fera.data.sources import find
from fera.evaluation.evaluating import evaluate
from fera.evaluation.results import Evaluation
from fera.evaluation.settings import EvaluationSettings
from fera.evaluation.subjects import load_subject, names_of
from fera.generation import prompt_grid
from fera.pipelines.base import load_base, to_device
from fera.support.files import claim_folder
from fera.support.progress import SILENT, Listener

_GRID_PROMPTS = 24
_BASE = "base"


@dataclass(frozen=True)
class Request:
    """A request for evaluations.

    Args:
        base: a diffusers pipeline's folder or Hub id, or "emoji".
        data: folder of real pictures.
        output: folder of the results.
        adapters: path and weight of each.
        baseline: evaluate the base without adapters too; it always is where there are no adapters.
        settings: the same for all.
        overwrite: replace results in the folder.
        device: where to compute; the fastest there is when left out.
    """

    base: str
    data: Path
    output: Path
    adapters: Sequence[tuple[str, float]] = field(default_factory=list)
    baseline: bool = False
    settings: EvaluationSettings = field(default_factory=EvaluationSettings)
    overwrite: bool = False
    device: str | None = None


def evaluate_side_by_side(request: Request, listener: Listener = SILENT) -> dict[str, Evaluation]:
    """Evaluate the base and adapters, one after the other, with the same samples, prompts and seeds.

    Args:
        request: what to evaluate.
        listener: hears how far it is.

    Returns:
        By name: "base", and the adapters' by their folders. Each name is a folder in the output, with
        `evaluation.json`, the pictures and their `grid.png`; `grid.png` beside them shows all with the real pictures.

    Raises:
        FeraError: something asked for cannot work.
    """
    names = names_of([path for path, _ in request.adapters])
    subjects: dict[str, tuple[str, float] | None] = dict(zip(names, request.adapters, strict=True))
    if request.baseline or not subjects:
        subjects = {_BASE: None, **subjects}
    _claim(request, list(subjects))
    for note in find(request.data, DataConfig(train_data_dir=request.data)).notes:
        listener.say(note)
    evaluations: dict[str, Evaluation] = {}
    for name, subject in subjects.items():
        pipe = load_base(request.base)
        if subject is not None:
            load_subject(pipe, *subject)
        to_device(pipe, request.device)
        evaluations[name] = evaluate(
            pipe,
            request.data,
            request.settings,
            output=request.output / name,
            cache=request.output / "cache",
            progress=_bars(listener, name),
        )
        del pipe
        gc.collect()
    if request.settings.images_per_prompt:
        _write_grid(request, evaluations)
    return evaluations


def table_of(evaluations: dict[str, Evaluation]) -> list[list[str]]:
    """The numbers side by side: rows of a label and one number an evaluation, "-" where it has none.

    Metrics that none of the evaluations has are left out.
    """
    rows = []
    for label, value in _ROWS:
        cells = [value(evaluation) for evaluation in evaluations.values()]
        if any(cell is not None for cell in cells):
            rows.append([label, *("-" if cell is None else _number(cell) for cell in cells)])
    return rows


def _quarter(number: int) -> Callable[[Evaluation], float | None]:
    return lambda evaluation: evaluation.loss_by_timestep[number]


# What the table shows: a label that says which direction is better, and where the number is.
_ROWS: list[tuple[str, Callable[[Evaluation], float | None]]] = [
    ("held-out loss ↓", lambda evaluation: evaluation.loss),
    ("  most noise ↓", _quarter(0)),
    ("  second quarter ↓", _quarter(1)),
    ("  third quarter ↓", _quarter(2)),
    ("  least noise ↓", _quarter(3)),
    ("FID ↓", lambda evaluation: evaluation.fid),
    ("KID ↓", lambda evaluation: evaluation.kid),
    ("similarity ↑", lambda evaluation: evaluation.similarity),
    ("drift ↓", lambda evaluation: evaluation.drift),
    ("sliced Wasserstein ↓", lambda evaluation: _mean(evaluation.sliced_wasserstein)),
    ("style score ↑", lambda evaluation: evaluation.style_score),
    ("  of the real pictures", lambda evaluation: evaluation.style_score_real),
    ("concept score ↑", lambda evaluation: evaluation.concept_score),
    ("  right picture first ↑", lambda evaluation: evaluation.concept_top1),
    ("  among five ↑", lambda evaluation: evaluation.concept_top5),
    ("  in other styles ↑", lambda evaluation: evaluation.concept_score_other_styles),
    ("text score ↑", lambda evaluation: evaluation.text_score),
    ("diversity, one prompt", lambda evaluation: evaluation.diversity_within_prompt),
    ("diversity, all prompts", lambda evaluation: evaluation.diversity_between_prompts),
    ("seconds a picture", lambda evaluation: evaluation.seconds_per_image),
]


def _mean(values: dict[str, float] | None) -> float | None:
    return sum(values.values()) / len(values) if values else None


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 100 else f"{value:.1f}"


def _claim(request: Request, names: list[str]) -> None:
    """Refuse to replace results unasked, before anything is loaded."""
    existing = [name for name in names if (request.output / name / "evaluation.json").exists()]
    held = [f"evaluations of {', '.join(existing)}"] if existing else []
    claim_folder(request.output, held, overwrite=request.overwrite)


def _bars(listener: Listener, name: str) -> Callable[[str, int, int], None]:
    return lambda what, done, total: listener.advance(f"{name}: {what}", done, total)


def _write_grid(request: Request, evaluations: dict[str, Evaluation]) -> None:
    """The first pictures of all, and the real ones of the same captions."""
    first = next(iter(evaluations.values()))
    prompts = [picture.prompt for picture in first.pictures if picture.repetition == 0][:_GRID_PROMPTS]
    real = {
        example.caption: example.image
        for example in find_examples(request.data, DataConfig(train_data_dir=request.data))
    }
    rows: dict[str, list[Image.Image | None]] = {}
    for name, evaluation in evaluations.items():
        files = [request.output / name / str(picture.file) for picture in evaluation.pictures[: len(prompts)]]
        rows[name] = [load_image(file) for file in files]
    rows["real"] = [load_image(real[prompt]) if prompt in real else None for prompt in prompts]
    prompt_grid(rows, prompts).save(request.output / "grid.png")
