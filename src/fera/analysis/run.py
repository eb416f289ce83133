"""What `fera analyze` does: a base, an adapter, prompts or pictures in; a folder of plots, tables and words out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fera.adapters.file import open_adapter
from fera.analysis.energies import Energies
from fera.analysis.files import Findings, claim, write_findings
from fera.analysis.reconstruction import Pictures, open_pictures
from fera.analysis.updates import expert_updates
from fera.analysis.walk import Sampling, Walk, draw, walk
from fera.errors import FeraError
from fera.method.bands import FrequencyBands
from fera.pipelines.adapters import load_adapter, set_adapters
from fera.pipelines.base import EMOJI, load_base, quantize_denoisers, to_device
from fera.pipelines.experts import fixed_gate, one_hot
from fera.support.progress import SILENT, Listener
from fera.tuner import FeraConfig
from fera.version import __version__

# What the adapter is called in the pipeline, in tables and in words.
ADAPTED = "adapted"
_PRECISIONS = {"fp32": "no", "fp16": "fp16", "bf16": "bf16"}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Prompts drawn with single experts: each costs a drawing an expert.
_EXPERT_PROMPTS = 6


@dataclass(frozen=True)
class Analysis:
    """A request for an analysis.

    Args:
        sampling: prompts and how to draw them; None looks at pictures alone.
        output: folder for the results.
        base: a diffusers pipeline's folder or Hub id; the one the adapter names when left out.
        adapter: path or Hub id, and weight; None for the base alone.
        data: folder of pictures to reconstruct; None for none.
        levels: noise levels of the reconstruction.
        pictures: how many pictures to reconstruct at most.
        resolution: side in pixels that they are brought to; the base's own when left out.
        experts: whether to draw with single experts.
        num_bands: K of the analysis; the adapter's when left out, or 3.
        kappa: the kappa of the analysis' bands; the adapter's when left out, or 1 / 128.
        overwrite: replace an analysis in the folder.
        device: where to compute; the fastest there is when left out.
        precision: the precision of the base's weights: "fp32", "fp16" or "bf16".
        offload: where the blocks of the denoiser wait for their use: "none" (on the device), "blocks" (in host memory)
            or "disk" (in the base's files).
        quantization: how the denoiser's linear layers are held, as in training; "none" as they are.
    """

    sampling: Sampling | None
    output: Path
    base: str | None = None
    adapter: tuple[str, float] | None = None
    data: Path | None = None
    levels: int = 10
    pictures: int = 32
    resolution: int | None = None
    experts: bool = True
    num_bands: int | None = None
    kappa: float | None = None
    overwrite: bool = False
    device: str | None = None
    precision: str = "fp32"
    offload: str = "none"
    quantization: str = "none"


def analyze(request: Analysis, listener: Listener = SILENT) -> Findings:
    """Draw, reconstruct, compare, and write what was found.

    Args:
        request: what to analyze.
        listener: hears what happens.

    Returns:
        What was found; its files are in the folder.

    Raises:
        FeraError: something asked for cannot work. Nothing is written then.
    """
    _check(request)
    config = None if request.adapter is None else open_adapter(request.adapter[0]).config
    base = request.base or (config.base_model_name_or_path if config is not None else None) or EMOJI
    bands = _bands(request, config)
    claim(request.output, overwrite=request.overwrite)
    sources = None
    if request.data is not None:
        sources = open_pictures(
            base,
            request.data,
            count=request.pictures,
            resolution=request.resolution,
            precision=_PRECISIONS[request.precision],
        )
    pipe = load_base(base, dtype=_DTYPES[request.precision]) if sources is None else sources.pipe
    listener.say(f"base: {base}")
    quantize_denoisers(pipe, request.quantization, request.device, _DTYPES[request.precision], request.offload)
    if request.adapter is not None:
        path, weight = request.adapter
        load_adapter(pipe, path, adapter_name=ADAPTED)
        set_adapters(pipe, ADAPTED, weight)
        listener.say(f"adapter: {path}, weight {weight:g}")
    device = to_device(pipe, request.device, request.offload)

    findings = Findings(settings=_settings(request, base, bands))
    if sources is not None:
        listener.say(f"encoding {len(sources.training)} pictures of {request.data}")
        pictures = Pictures(sources, device)
        findings.reconstruction = _reconstruct(pictures, pipe, request, bands, listener)
    has_gate = config is not None and config.has_gate
    if request.sampling is not None:
        walks = [_walk(pipe, request, bands, model, listener, has_gate) for model in _models(request)]
        findings.prompts = list(request.sampling.prompts)
        findings.energies = [one.energies for one in walks]
        findings.gates = walks[-1].gates
        if config is not None and has_gate and request.experts:
            findings.expert_images = _draw_experts(pipe, request, config.num_experts, walks, listener)
    if config is not None:
        findings.updates = expert_updates(pipe, adapter_name=ADAPTED)
    write_findings(findings, request.output)
    return findings


def _check(request: Analysis) -> None:
    if request.sampling is None and request.data is None:
        raise FeraError('nothing to analyze: give `prompts` ("a red heart"), or `data`, a folder of pictures, or both')
    bounds: list[tuple[str, float, float]] = [("levels", request.levels, 1), ("pictures", request.pictures, 1)]
    if (sampling := request.sampling) is not None:
        bounds += [("steps", sampling.steps, 1), ("batch_size", sampling.batch_size, 1)]
        bounds += [("guidance_scale", sampling.guidance_scale, 0)]
    for name, value, least in bounds:
        if not value >= least:
            raise FeraError(f"`{name}` must be at least {least}, got {value}")


def _bands(request: Analysis, config: FeraConfig | None) -> FrequencyBands:
    """The adapter's own bands: what its router sees. Those of released checkpoints have no energies of their own."""
    num_bands = 3 if config is None else config.num_bands
    kappa = 1 / 128 if config is None else config.chosen_kappa
    return FrequencyBands(
        num_bands if request.num_bands is None else request.num_bands, kappa if request.kappa is None else request.kappa
    )


def _models(request: Analysis) -> list[str]:
    return ["base"] if request.adapter is None else ["base", ADAPTED]


@contextmanager
def _active(pipe: Any, request: Analysis, model: str) -> Iterator[None]:
    """The adapter on or off inside the block, on after it."""
    if request.adapter is None:
        yield
        return
    set_adapters(pipe, [] if model == "base" else ADAPTED, request.adapter[1] if model != "base" else None)
    try:
        yield
    finally:
        set_adapters(pipe, ADAPTED, request.adapter[1])


def _walk(pipe: Any, request: Analysis, bands: FrequencyBands, model: str, listener: Listener, has_gate: bool) -> Walk:
    assert request.sampling is not None
    advance = _bar(listener, f"drawing, {model}", len(request.sampling.prompts) * request.sampling.steps)
    with _active(pipe, request, model):
        return walk(pipe, request.sampling, bands, model=model, traced=model == ADAPTED and has_gate, progress=advance)


def _reconstruct(
    pictures: Pictures, pipe: Any, request: Analysis, bands: FrequencyBands, listener: Listener
) -> list[Energies]:
    results = []
    for model in _models(request):
        advance = _bar(listener, f"reconstructing, {model}", len(pictures) * request.levels)
        with _active(pipe, request, model):
            results.append(pictures.reconstruct(bands, model=model, levels=request.levels, progress=advance))
    return results


def _draw_experts(
    pipe: Any, request: Analysis, num_experts: int, walks: Sequence[Walk], listener: Listener
) -> dict[str, list[Image.Image]]:
    """The first prompts by the base, the routed adapter, a uniform gate and each expert alone; the same noise."""
    assert request.sampling is not None
    few = request.sampling.first(_EXPERT_PROMPTS)
    gates: dict[str, str | list[float]] = {"uniform gate": "uniform"} if num_experts > 1 else {}
    gates |= {f"expert {e + 1} alone": one_hot(e, num_experts) for e in range(num_experts)}
    rows = {name: one.images[: len(few.prompts)] for name, one in zip(("base", "routed"), walks, strict=True)}
    for name, gate in gates.items():
        advance = _bar(listener, f"drawing, {name}", len(few.prompts) * few.steps)
        with fixed_gate(pipe, gate, adapter_name=ADAPTED):
            rows[name] = draw(pipe, few, advance)
    return rows


def _settings(request: Analysis, base: str, bands: FrequencyBands) -> dict[str, Any]:
    settings: dict[str, Any] = {"fera": __version__, "base": base}
    if request.adapter is not None:
        settings |= {"adapter": request.adapter[0], "weight": request.adapter[1]}
    settings |= {"num_bands": bands.num_bands, "kappa": bands.kappa, "precision": request.precision}
    if request.data is not None:
        settings |= {"data": str(request.data), "pictures": request.pictures, "levels": request.levels}
    if request.sampling is not None:
        settings |= {name: value for name, value in vars(request.sampling).items() if name != "batch_size"}
    return settings


def _bar(listener: Listener, what: str, total: int) -> Callable[[int], None]:
    return lambda done: listener.advance(what, done, total)
