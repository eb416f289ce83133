"""From an adapter and a gate to plain LoRA files, whole or not at all."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fera.adapters.file import AdapterFile, open_adapter
from fera.adapters.tensors import save_tensors
from fera.errors import FeraError
from fera.export.best import BY_LAYER, BestGate, choose_best
from fera.export.converted import converted_lora
from fera.export.formats import FORMATS, Tensors, encode
from fera.export.gap import Gap, measure_gap, record_walk
from fera.export.static import StaticLora, check_no_soft_prompt, gate_for, static_lora
from fera.export.text_encoders import PEFT_CONFIG, PEFT_WEIGHTS, in_folders, peft_config, peft_tensors
from fera.export.tokens import token_files
from fera.export.tools import format_for
from fera.method.routing import Routing
from fera.models.registry import known
from fera.pipelines.adapters import load_adapter, unload
from fera.traces.gates import GateChoice, GateTrace, trace_of
from fera.tuner import FeraConfig
from fera.version import __version__

SCHEDULE = "schedule.json"
# What the adapter is called while it is measured.
_NAME = "exported"
_STEPS = 8
_BEST = "best"
_BEST_BY_LAYER = "best-by-layer"


@dataclass(frozen=True)
class Exported:
    """What `export_lora` did.

    Args:
        files: written; a schedule's description last, but for those of a learned token and of text encoders.
        gates: the gates of each LoRA, E weights each.
        gap: how far they are from the routed adapter; None where it was not measured.
        is_exact: whether the LoRA is the adapter itself, whose router is "gradient".
        cut: of experts that are no LoRA, what was cut from the changes of the weights, relative to the changes.
        compared: the same of "uniform" and "mean" beside "best", where the gate was chosen by data.
    """

    files: list[Path]
    gates: list[list[float]]
    gap: Gap | None
    is_exact: bool = False
    compared: Mapping[str, Gap] = field(default_factory=dict)
    cut: float = 0.0


@dataclass(frozen=True)
class _Part:
    """One LoRA of an export: the steps it serves, counted from 1, their timesteps, how noisy those are, its gate."""

    first_step: int
    last_step: int
    timesteps: list[float]
    noise_levels: list[float] | None
    gate: Tensor


def export_lora(
    adapter: str | os.PathLike[str],
    output: str | os.PathLike[str],
    gate: GateChoice | None,
    *,
    format: str = "diffusers",
    tool: str | None = None,
    dtype: torch.dtype | None = None,
    schedule: int | None = None,
    pipe: Any = None,
    prompts: Sequence[str] = (),
    energy: float = 0.99,
    overwrite: bool = False,
) -> Exported:
    """Write a routed adapter as a plain LoRA, or as several that serve a range of denoising steps each.

    A plain LoRA is an approximation, and its metadata says how good it is: give `pipe` and `prompts` to measure it.
    What the adapter has in the text encoders is exact: their LoRA is in each file, or in folders of PEFT's where
    diffusers reads it from none; a learned token is in files of its own.

    Args:
        adapter: as `fera.load_adapter` takes it.
        output: a `.safetensors` file, or a folder; a folder for a schedule.
        gate: "uniform", E weights that sum to 1, what `fera.trace` recorded, or a `GateTrace`; "best" for the gate
            whose predictions are nearest to the routed ones on `prompts`, "best-by-layer" for one a layer, which takes
            the memory of training; None for an adapter whose router is "gradient", which is a plain LoRA and exact as
            one.
        format: a key of `fera.export.formats.FORMATS`.
        tool: one of `fera.export.tools.TOOLS`, which chooses the format; `format` is not looked at then.
        dtype: precision of the file's tensors; that of the adapter when left out.
        schedule: number of LoRAs, each with the mean gate of its range of the trace's steps; one in all when left out.
        pipe: pipeline of the base without adapters, to measure with; it is left as it was.
        prompts: to measure with; not those the adapter was trained on.
        energy: of an adapter whose experts are no LoRA, which needs `pipe`: the part of each layer's change, in squared
            singular values, that stays in the LoRA. The more, the larger its ranks.
        overwrite: replace files of the same names.

    Returns:
        Files, gates, and the distance where it was measured.

    Raises:
        FeraError: something cannot work; nothing is written then.
    """
    file = open_adapter(adapter)
    is_converted = file.config.expert is not None
    if pipe is None and prompts or pipe is not None and not (prompts or is_converted):
        raise FeraError("to measure an export give both a base and prompts, or neither")
    best: BestGate | None = None
    if gate in (_BEST, _BEST_BY_LAYER):
        best = _choose(file, adapter, pipe, prompts, schedule, by_layer=gate == _BEST_BY_LAYER)
        gate = best.gate.tolist()
    compared, layers = ({}, {}) if best is None else (best.gaps, best.by_layer)
    parts = _parts(file, gate, schedule)
    if pipe is not None and not file.config.has_gate:
        raise FeraError("the export is exact, there is nothing to measure: leave base and prompts out")
    loras, errors = _loras(file, adapter, parts, pipe, energy, layers)
    if tool is not None:
        format = format_for(tool, loras[0])
    encoded = [_cast(*encode(lora, format), dtype) for lora in loras]
    paths = _paths(Path(output), FORMATS[format].file_name, len(parts), schedule is not None)
    tokens = {paths[0].parent / name: held for name, held in token_files(file.text, format, loras[0]).items()}
    folders = _folders(loras[0], paths[0].parent, dtype) if format == "diffusers" else {}
    if existing := [path for path in (*paths, *tokens, *folders) if path.exists() and not overwrite]:
        raise FeraError(f"{existing[0]} exists already; give another `output`, or `overwrite` to replace it")
    gap = compared.get(BY_LAYER if layers else _BEST)
    if gap is None and prompts:
        gap = measure(adapter, pipe, prompts, [part.gate for part in parts])
    description = _describe(gap, prompts, is_exact=not file.config.has_gate and not is_converted)
    if layers:
        description["gates_by_layer"] = {path: [round(one, 6) for one in own.tolist()] for path, own in layers.items()}
    if is_converted:
        description["cut"] = max(errors)
    writers: dict[Path, Callable[[Path], object]] = {}
    for part, (tensors, metadata), path in zip(parts, encoded, paths, strict=False):
        own = metadata | {"fera_export": json.dumps(description | _entry(part, parts), sort_keys=True)}
        writers[path] = _saver(tensors, own)
    if schedule is not None:
        entries = [{"file": path.name} | _entry(part, parts) for part, path in zip(parts, paths, strict=False)]
        text = json.dumps(description | {"format": format, "loras": entries}, indent=2) + "\n"
        writers[paths[-1]] = lambda path: path.write_text(text, encoding="utf-8")
    writers |= {path: _saver(held, {"format": "pt"}) for path, held in tokens.items()}
    _write_all(writers | folders)
    gates = [part.gate.tolist() for part in parts]
    is_exact = not file.config.has_gate and not is_converted
    return Exported([*paths, *tokens, *folders], gates, gap, is_exact, compared, max(errors))


def _cast(tensors: Tensors, metadata: dict[str, str], dtype: torch.dtype | None) -> tuple[Tensors, dict[str, str]]:
    """Tensors in another precision."""
    if dtype is None:
        return tensors, metadata
    cast = {key: tensor.to(dtype) for key, tensor in tensors.items()}
    if broken := [key for key, tensor in cast.items() if not torch.isfinite(tensor).all()]:
        raise FeraError(f"{broken[0]} holds numbers beyond {str(dtype).removeprefix('torch.')}; choose another `dtype`")
    return cast, metadata


def _parts(file: AdapterFile, gate: GateChoice | None, schedule: int | None) -> list[_Part]:
    chosen = gate_for(file.config, gate)
    if schedule is not None and not file.config.has_gate:
        raise FeraError("an adapter without a gate is one plain LoRA at every step: leave `schedule` out")
    if schedule is None:
        return [_Part(1, 1, [], None, chosen)]
    if not isinstance(gate, GateTrace):
        if isinstance(gate, str) or not gate or not isinstance(gate[0], Routing):
            raise FeraError("a schedule needs a trace: its LoRAs have the mean gates of the steps they serve")
        gate = trace_of(gate)  # type: ignore[arg-type]
    parts, first = [], 1
    for piece in gate.split(schedule):
        last = first + len(piece.timesteps) - 1
        parts.append(_Part(first, last, piece.timesteps, _noise_levels(file.config, piece.timesteps), piece.mean()))
        first = last + 1
    return parts


def _noise_levels(config: FeraConfig, timesteps: list[float]) -> list[float] | None:
    """How noisy the latents of timesteps are, 0 (clean) to 1 (pure noise); None where the denoiser is not known."""
    denoiser = known().get((config.base_fingerprint or {}).get("class", ""))
    if denoiser is None:
        return None
    clean, noise = denoiser.timestep_range
    return [round((timestep - clean) / (noise - clean), 6) for timestep in timesteps]


def _paths(output: Path, file_name: str, count: int, is_schedule: bool) -> list[Path]:
    """The files to write; a schedule's description last."""
    is_file = output.suffix == ".safetensors"
    if not is_schedule:
        return [output if is_file else output / file_name]
    if is_file:
        raise FeraError(f"a schedule is several files: give a folder as output, not {output}")
    stem = file_name.removesuffix(".safetensors")
    return [*(output / f"{stem}-{number}.safetensors" for number in range(1, count + 1)), output / SCHEDULE]


def _loras(
    file: AdapterFile,
    adapter: str | os.PathLike[str],
    parts: Sequence[_Part],
    pipe: Any,
    energy: float,
    layers: Mapping[str, Tensor],
) -> tuple[list[StaticLora], list[float]]:
    """The LoRA of each part, and how much was cut from it."""
    if file.config.expert is None or pipe is None:
        return [static_lora(file, part.gate, layers) for part in parts], [0.0]
    check_no_soft_prompt(file.config)
    found = [converted_lora(pipe, adapter, file, part.gate, energy) for part in parts]
    return [one.lora for one in found], [one.error for one in found]


def _choose(
    file: AdapterFile,
    adapter: str | os.PathLike[str],
    pipe: Any,
    prompts: Sequence[str],
    schedule: int | None,
    *,
    by_layer: bool,
) -> BestGate:
    if not file.config.has_gate:
        gate_for(file.config, _BEST)  # which says so
    check_no_soft_prompt(file.config)
    if pipe is None:
        raise FeraError('gate "best" is chosen by drawing: give a base and prompts')
    if schedule is not None:
        raise FeraError('gate "best" is one for all steps: leave `schedule` out, or take its gates from a trace')
    load_adapter(pipe, adapter, adapter_name=_NAME)
    try:
        return choose_best(pipe, prompts, adapter_name=_NAME, steps=_STEPS, by_layer=by_layer)
    finally:
        unload(pipe, _NAME)


def measure(adapter: str | os.PathLike[str], pipe: Any, prompts: Sequence[str], gates: list[Tensor]) -> Gap:
    """How far static gates are from a routed adapter, over what prompts draw.

    Args:
        adapter: as `fera.load_adapter` takes it.
        pipe: pipeline of the base without adapters; it is left as it was.
        prompts: at least one.
        gates: one, or one a part of the steps, each of shape (E,).
    """
    steps = max(_STEPS, len(gates))
    load_adapter(pipe, adapter, adapter_name=_NAME)
    try:
        walk = record_walk(pipe, prompts, adapter_name=_NAME, steps=steps)
        count = len(walk.trace.timesteps)
        return measure_gap(pipe, walk, lambda step: gates[step * len(gates) // count], adapter_name=_NAME)
    finally:
        unload(pipe, _NAME)


def _describe(gap: Gap | None, prompts: Sequence[str], *, is_exact: bool) -> dict[str, Any]:
    approximation: Any = "exact" if is_exact else "not measured"
    if gap is not None:
        approximation = asdict(gap) | {"prompts": list(prompts)}
    return {"fera": __version__, "static": True, "approximation": approximation}


def _entry(part: _Part, parts: Sequence[_Part]) -> dict[str, Any]:
    """What a LoRA's metadata and a schedule say of it."""
    entry: dict[str, Any] = {"gate": [round(weight, 6) for weight in part.gate.tolist()]}
    if part.timesteps:
        total = parts[-1].last_step
        entry |= {
            "first_step": part.first_step,
            "last_step": part.last_step,
            "start": round((part.first_step - 1) / total, 6),
            "end": round(part.last_step / total, 6),
            "timesteps": part.timesteps,
        }
    if part.noise_levels:
        entry["noise_levels"] = part.noise_levels
    return entry


def _folders(lora: StaticLora, folder: Path, dtype: torch.dtype | None) -> dict[Path, Callable[[Path], object]]:
    """PEFT's folders with what diffusers' file has no place for: files to what writes them."""
    writers: dict[Path, Callable[[Path], object]] = {}
    for encoder, layers in in_folders(lora).items():
        tensors, _ = _cast(peft_tensors(layers), {}, dtype)
        writers[folder / encoder / PEFT_WEIGHTS] = _saver(tensors, {"format": "pt"})
        writers[folder / encoder / PEFT_CONFIG] = partial(Path.write_text, data=peft_config(layers), encoding="utf-8")
    return writers


def _saver(tensors: Tensors, metadata: dict[str, str]) -> Callable[[Path], object]:
    return lambda path: save_tensors(tensors, path, metadata)


def _write_all(writers: dict[Path, Callable[[Path], object]]) -> None:
    """Write every file beside its place first, and only then put all of them there."""
    folder = next(iter(writers)).parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".export-", dir=folder) as staging:
            for path, write in writers.items():
                staged = Path(staging) / path.relative_to(folder)
                staged.parent.mkdir(exist_ok=True)
                staged.touch()
                mode = staged.stat().st_mode
                write(staged)
                staged.chmod(mode)  # safetensors keeps its files from other users
            for path in writers:
                path.parent.mkdir(exist_ok=True)
                os.replace(Path(staging) / path.relative_to(folder), path)
    except OSError as error:
        raise FeraError(f"cannot write the export to {folder}: {error.strerror or error}") from error
