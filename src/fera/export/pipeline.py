"""A base with an adapter merged into it, as a pipeline's folder that diffusers loads without fera."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from fera.adapters.file import open_adapter
from fera.errors import FeraError
from fera.export.gap import Gap
from fera.export.merging import Merged, merge
from fera.export.static import gate_for
from fera.export.writing import measure
from fera.pipelines.adapters import load_adapter, set_adapters
from fera.pipelines.base import load_base
from fera.support.progress import SILENT, Listener
from fera.traces.gates import GateChoice
from fera.version import __version__

# Beside the pipeline's own files: what was merged.
RECORD = "fera_merge.json"
_NAME = "merged"


@dataclass(frozen=True)
class MergeRequest:
    """A request for a merged base.

    Args:
        adapter: as `fera.load_adapter` takes it.
        output: folder to write; it must not exist.
        gate: "uniform", E weights that sum to 1, or a `GateTrace`; None for an adapter whose router is "gradient".
        base: the base; the one that the adapter names when left out.
        weight: of the adapter.
        prompts: to measure with how far the merged base is from the routed adapter; not measured without.
        dtype: of the weights, in memory and in the files.
    """

    adapter: str
    output: Path
    gate: GateChoice | None
    base: str | None = None
    weight: float = 1.0
    prompts: Sequence[str] = ()
    dtype: torch.dtype = torch.float32


def write_merged(request: MergeRequest, listener: Listener = SILENT) -> tuple[Merged, Gap | None]:
    """Merge an adapter into its base under one fixed gate, and write the pipeline, whole or not at all.

    Args:
        request: what, and where.
        listener: hears what happens.

    Returns:
        What was merged, and how far it is from the routed adapter at a weight of 1, where that was measured.

    Raises:
        FeraError: something cannot work; nothing is written then.
    """
    file = open_adapter(request.adapter)
    gate_for(file.config, request.gate)  # a gate that is none is said before a base is loaded
    base = request.base or file.config.base_model_name_or_path
    if base is None:
        raise FeraError("the adapter names no base: give `base`")
    if request.output.exists():
        raise FeraError(f"{request.output} exists already; give another `output`")
    pipe: Any = load_base(base, dtype=request.dtype)
    gap = None
    if request.prompts and file.config.has_gate:
        listener.say("measuring how far one gate is from the routed adapter")
        gap = measure(request.adapter, pipe, request.prompts, [gate_for(file.config, request.gate)])
    load_adapter(pipe, request.adapter, adapter_name=_NAME)
    set_adapters(pipe, _NAME, request.weight)
    merged = merge(pipe, request.gate, adapter_name=_NAME)
    listener.say(f"merged into {len(merged.layers)} layers of {base}")
    record = {
        "fera": __version__,
        "base": base,
        "adapter": request.adapter,
        "weight": request.weight,
        "gate": list(merged.gate),
        "gap": "not measured" if gap is None else asdict(gap) | {"prompts": list(request.prompts)},
    }
    try:
        request.output.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=request.output.parent) as staging:
            whole = Path(staging) / "pipeline"
            pipe.save_pretrained(whole, safe_serialization=True)
            (whole / RECORD).write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            whole.rename(request.output)
    except OSError as error:
        raise FeraError(f"cannot write {request.output}: {error.strerror or error}") from error
    return merged, gap
