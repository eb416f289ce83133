"""What a run came to: `result.json` in its folder, and collections of them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fera.comparison.plan import Run
from fera.comparison.study import LEARNING_RATES, Study
from fera.errors import FeraError
from fera.models.layers import ATTENTION
from fera.support.files import replace_file

RESULT = "result.json"
# 1 names no layers where it means those of the attention, the default then.
_FORMAT_VERSION = 2


@dataclass(frozen=True)
class Samples:
    """Held-out denoising samples of a run, in a fixed order that all runs of a style share.

    Args:
        images: file name of each picture.
        positions: the positions of each along the noise process, 0 (noise) to 1 (clean).
        losses: the losses of each.
        bands: the bands of each, its loss by frequency band, low to high.
    """

    images: list[str]
    positions: list[float]
    losses: list[float]
    bands: list[list[float]]


@dataclass(frozen=True)
class Result:
    """One finished run.

    Args:
        method: its name in the study.
        style: name of the style.
        seed: the seed of the training.
        rate: the learning rate on trial, or None for a run of the comparison.
        settings: what the result depends on, by dotted name.
        fingerprint: hash of these.
        code: version of fera and, in a git checkout, its commit.
        versions: the versions of the libraries.
        hardware: processor, graphics card, threads, host.
        parameters: trained ones, the router's left out.
        router_parameters: the router's.
        adapter_bytes: size of the saved weights.
        seconds: the seconds of the whole run.
        seconds_per_training_step: over all steps.
        seconds_per_generation_step: of one picture, guidance included; None where none was drawn.
        peak_memory_bytes: most memory during training; None where the system does not tell.
        validation_loss: after training, on validation names.
        gates: for each quarter of the noise process, noise to clean, the mean gate of each expert and their mean
            entropy; None where nothing is routed.
        samples: the samples of the evaluation on test names; None for trials of learning rates.
        metrics: the rest of the evaluation.
    """

    method: str
    style: str
    seed: int
    rate: float | None
    settings: dict[str, Any]
    fingerprint: str
    code: dict[str, Any]
    versions: dict[str, str]
    hardware: dict[str, Any]
    parameters: int
    router_parameters: int
    adapter_bytes: int
    seconds: float
    seconds_per_training_step: float
    seconds_per_generation_step: float | None
    peak_memory_bytes: int | None
    validation_loss: float | None
    gates: list[dict[str, Any]] | None
    samples: Samples | None
    metrics: dict[str, Any]

    @property
    def run(self) -> Run:
        """The run that it is of."""
        return Run(self.method, self.style, self.seed, self.rate)


def write_result(result: Result, folder: Path) -> None:
    """Write a run's result, whole or not at all."""
    write_json({"format_version": _FORMAT_VERSION, **asdict(result)}, folder / RESULT)


def read_result(folder: Path) -> Result | None:
    """A run's result; None where it has none yet.

    Raises:
        FeraError: the file cannot be read.
    """
    path = folder / RESULT
    if not path.is_file():
        return None
    return _parse(_load(path), path)


def read_results(output: Path, study: Study) -> list[Result]:
    """All results of a study's folder, without the trials of learning rates."""
    found = [read_result(path.parent) for path in sorted(output.glob(f"*/*/seed-*/{RESULT}"))]
    return _of_study([result for result in found if result is not None and result.method != LEARNING_RATES], study)


def read_trials(output: Path, study: Study) -> list[Result]:
    """All finished trials of learning rates in a study's folder."""
    found = [read_result(path.parent) for path in sorted((output / LEARNING_RATES).glob(f"*/*/seed-*/*/{RESULT}"))]
    return [result for result in found if result is not None and result.method in study.methods]


def collect(results: Sequence[Result], trials: Sequence[Result], study: Study, path: Path) -> None:
    """Write results as one compact file, fit for a repository: numbers of six digits, no file of a machine.

    Args:
        results: the results of the study.
        trials: the trials of its learning rates.
        study: the study.
        path: the JSON file.
    """
    shared: dict[str, Any] = {}
    runs = []
    for result in (*results, *trials):
        entry = asdict(result)
        samples = entry["samples"] or {}
        # Rounded first: those of a collection that runs went on from are rounded already.
        places = rounded({name: samples.pop(name) for name in ("images", "positions") if name in samples})
        if places and shared.setdefault(result.style, places) != places:
            raise FeraError(f"{result.run}: evaluated on other samples than the runs before it; run it again")
        entry["metrics"].pop("pictures", None)
        entry["metrics"].pop("folder", None)
        entry["hardware"].pop("host", None)
        runs.append(entry)
    content = {"format_version": _FORMAT_VERSION, "study": study.name, "samples": shared, "runs": runs}
    write_json(rounded(content), path, indent=None)


def read_collection(path: Path, study: Study) -> list[Result]:
    """Results of a file that `collect` wrote, without the trials of learning rates.

    Raises:
        FeraError: it cannot be read, or is of another study.
    """
    return _of_study(_collected(path, study), study)


def unpack(path: Path, study: Study, output: Path) -> int:
    """Put the study's results in a file that `collect` wrote into its folder; those already there stay.

    Args:
        path: the JSON file.
        study: the study.
        output: folder of the study.

    Returns:
        How many were put there.

    Raises:
        FeraError: the file cannot be read, is of another study, or the folder cannot be written.
    """
    known = [one for one in _collected(path, study) if one.method in study.methods and one.style in study.style_names]
    missing = [one for one in known if not (one.run.folder(output) / RESULT).exists()]
    for result in missing:
        write_result(result, result.run.folder(output))
    return len(missing)


def write_json(content: Any, path: Path, indent: int | None = 1) -> None:
    """Write JSON, whole or not at all.

    Raises:
        FeraError: the file cannot be written.
    """
    separators = (",", ":") if indent is None else None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(content, indent=indent, separators=separators) + "\n"
        replace_file(path, lambda file: file.write_text(text, encoding="utf-8"))
    except OSError as error:
        raise FeraError(f"cannot write {path}: {error.strerror}") from error


def rounded(value: Any) -> Any:
    """The same with all floats at six significant digits."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {name: rounded(item) for name, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list | tuple) else value


def _collected(path: Path, study: Study) -> list[Result]:
    content = _load(path)
    if not isinstance(content.get("runs"), list):
        raise FeraError(f"{path} is no collection of `fera compare --collect`")
    if content.get("study") != study.name:
        raise FeraError(f"{path} is a collection of study {content.get('study')!r}, not of {study.name!r}")
    results = []
    for entry in content["runs"]:
        if entry.get("samples"):
            entry["samples"] |= content["samples"][entry["style"]]
        results.append(_parse(entry, path))
    return results


def _of_study(results: Sequence[Result], study: Study) -> list[Result]:
    """Those whose method, style and seed are the study's, in the study's order."""
    methods, styles = list(study.methods), study.style_names
    wanted = [
        result
        for result in results
        if result.method in methods and result.style in styles and result.seed in study.seeds and result.rate is None
    ]
    return sorted(wanted, key=lambda one: (study.seeds.index(one.seed), styles.index(one.style), one.method))


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise FeraError(f"cannot read {path} ({error}); remove it, and its run is made again") from None
    if not isinstance(content, dict) or content.get("format_version", _FORMAT_VERSION) > _FORMAT_VERSION:
        raise FeraError(f"{path} was written by a newer fera; upgrade to read it")
    if content.get("format_version") == 1:
        for entry in content.get("runs", [content]):
            _name_layers(entry.get("settings", {}))
    return content


def _name_layers(settings: dict[str, Any]) -> None:
    if settings.get("adapter.target_modules") is None and not settings.get("adapter.full"):
        settings["adapter.target_modules"] = [ATTENTION]


def _parse(content: dict[str, Any], path: Path) -> Result:
    names = {field.name for field in fields(Result)}
    try:
        values = {name: content[name] for name in names}
        values["samples"] = Samples(**values["samples"]) if values["samples"] else None
        return Result(**values)
    except (KeyError, TypeError) as error:
        raise FeraError(
            f"{path} is no result of `fera compare` ({error}); remove it, and its run is made again"
        ) from None
