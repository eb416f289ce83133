"""`fera export`."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from fera.errors import FeraError

if TYPE_CHECKING:
    from fera.export.gap import Gap
    from fera.traces.gates import GateChoice

# The keys of fera.export.formats.FORMATS, whose import costs seconds.
FORMATS = ("diffusers", "kohya", "comfyui")
# fera.export.tools.TOOLS
TOOLS = ("comfyui", "kohya", "diffusers", "forge", "invokeai", "sdcpp")
_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("adapter", metavar="ADAPTER", help="adapter folder, run folder, safetensors file or Hub id")
    named = parser.add_mutually_exclusive_group()
    named.add_argument("--format", choices=FORMATS, default="diffusers", help="key names (%(default)s)")
    named.add_argument(
        "--for", dest="tool", choices=TOOLS, help="the tool that is to load it, which chooses the format"
    )
    parser.add_argument("--dtype", choices=_DTYPES, help="precision of the file; that of the adapter when left out")
    parser.add_argument(
        "--gate",
        metavar="GATE",
        help='mixture of the experts: "uniform", "mean" over the steps of --trace, "best" for the one whose '
        "predictions on --prompts are nearest to the routed ones, or weights such as 0.2,0.3,0.5; mean where there is "
        "a trace; none for an adapter whose router is gradient",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="gates.csv of fera generate --trace")
    parser.add_argument(
        "--schedule", type=int, metavar="N", help="write N LoRAs, each with the mean gate of its share of the steps"
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="PATH",
        help="a .safetensors file, or a folder",
    )
    parser.add_argument(
        "--energy",
        type=float,
        default=0.99,
        metavar="PART",
        help="of experts that are no LoRA: the part of each layer's change that stays, in squared singular values "
        "(%(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace files of the same names")
    measuring = parser.add_argument_group("measuring how far the LoRA is from the routed adapter")
    measuring.add_argument("--base", help='diffusers pipeline: a folder, a Hub id, or "emoji"')
    measuring.add_argument(
        "--prompts", nargs="+", default=[], metavar="PROMPT", help="drawn to measure; not those of the training"
    )


def run(arguments: argparse.Namespace) -> int:
    """Write, say where and how good it is."""
    import torch
    from rich.console import Console

    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    from fera.adapters.header import read_header
    from fera.export.writing import export_lora
    from fera.pipelines.base import load_base

    header = read_header(arguments.adapter)
    has_gate = header.settings.get("router") != "gradient"
    is_lora = header.settings.get("expert") is None
    gate = gate_of(arguments.gate, arguments.trace, arguments.schedule) if has_gate or arguments.gate else None
    if arguments.base is None and arguments.prompts or arguments.base and not arguments.prompts and is_lora:
        raise FeraError("measuring needs both --base and --prompts; leave out both to export without measuring")
    if not is_lora and arguments.base is None:
        raise FeraError("the adapter's experts are no LoRA: to write one that is nearly the same, give --base")
    if gate in ("best", "best-by-layer") and arguments.base is None:
        raise FeraError(f"--gate {gate} is chosen by drawing: give --base and --prompts")
    exported = export_lora(
        arguments.adapter,
        arguments.output,
        gate,
        format=arguments.format,
        tool=arguments.tool,
        dtype=None if arguments.dtype is None else getattr(torch, _DTYPES[arguments.dtype]),
        schedule=arguments.schedule,
        pipe=None if arguments.base is None else load_base(arguments.base),
        prompts=arguments.prompts,
        energy=arguments.energy,
        overwrite=arguments.overwrite,
    )
    console = Console(stderr=True, highlight=False)
    for weights in exported.gates if not exported.is_exact else ():
        console.print(f"gate: {', '.join(f'{weight:.3f}' for weight in weights)}")
    if exported.is_exact:
        console.print("exact: the adapter's experts act all alike, so it is this plain LoRA")
    else:
        console.print(gap_in_words(exported.gap, "a plain LoRA", "give --base"))
    if not is_lora:
        console.print(f"the experts are no LoRA; what was cut from the change of the weights: {exported.cut:.2%}")
    for name, gap in exported.compared.items():
        console.print(f"  {name}: {gap.prediction:.2%}, {gap.change:.1%}")
    for path in exported.files:
        print(path)
    return 0


def gap_in_words(gap: "Gap | None", what: str, advice: str) -> str:
    """How far a static adapter is from the routed one, or that it was not measured."""
    if gap is None:
        return f"{what} only approximates a routed adapter; how far it is was not measured ({advice})"
    return (
        f"against the routed adapter, over {len(gap.timesteps)} calls: predictions differ by "
        f"{gap.prediction:.2%}, which is {gap.change:.1%} of what the adapter changes"
    )


def gate_of(text: str | None, trace: Path | None, schedule: int | None) -> "GateChoice":
    """The gate that `--gate` and `--trace` stand for."""
    from fera.traces.gates import CHOICES, read_trace

    if schedule is not None and (trace is None or text not in (None, "mean")):
        raise FeraError("--schedule needs --trace and takes its gates from it; leave out --gate")
    if trace is not None and text in (None, "mean"):
        return read_trace(trace)
    if trace is not None:
        raise FeraError(f"--gate {text} leaves --trace unused; give one of the two")
    if text is None:
        raise FeraError("say which gate: --gate uniform, --gate 0.2,0.3,0.5, or --trace FILE for its mean")
    if text == "mean":
        raise FeraError("--gate mean needs --trace FILE, the gates.csv of fera generate --trace")
    if text in ("uniform", "best", "best-by-layer"):
        return text
    try:
        return [float(weight) for weight in text.split(",")]
    except ValueError:
        raise FeraError(f"--gate {text} is no gate; give {CHOICES}") from None
