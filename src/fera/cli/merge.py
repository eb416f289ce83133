"""`fera merge`."""

import argparse
from pathlib import Path

_DTYPES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's options."""
    parser.add_argument("adapter", metavar="ADAPTER", help="adapter folder, run folder, safetensors file or Hub id")
    parser.add_argument(
        "--base", help='diffusers pipeline: a folder, a Hub id, or "emoji"; the one it names when left out'
    )
    parser.add_argument(
        "--gate",
        metavar="GATE",
        help='mixture of the experts: "uniform", "mean" over the steps of --trace, or weights such as 0.2,0.3,0.5; '
        "mean where there is a trace; none for an adapter whose router is gradient",
    )
    parser.add_argument("--trace", type=Path, metavar="FILE", help="gates.csv of fera generate --trace")
    parser.add_argument("--weight", type=float, default=1.0, help="of the adapter (%(default)s)")
    parser.add_argument("--dtype", choices=_DTYPES, default="fp32", help="precision of the weights (%(default)s)")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="must not exist")
    parser.add_argument(
        "--prompts",
        nargs="+",
        default=[],
        metavar="PROMPT",
        help="drawn to measure how far it is from the routed adapter; not those of the training",
    )


def run(arguments: argparse.Namespace) -> int:
    """Merge, write, say how good it is."""
    from fera.cli.console import Terminal
    from fera.cli.quiet import quiet_libraries

    quiet_libraries()
    import torch

    from fera.adapters.header import read_header
    from fera.cli.export import gap_in_words, gate_of
    from fera.export.pipeline import MergeRequest, write_merged

    has_gate = read_header(arguments.adapter).settings.get("router") != "gradient"
    request = MergeRequest(
        arguments.adapter,
        arguments.output,
        gate_of(arguments.gate, arguments.trace, None) if has_gate or arguments.gate else None,
        arguments.base,
        arguments.weight,
        arguments.prompts,
        getattr(torch, _DTYPES[arguments.dtype]),
    )
    with Terminal() as terminal:
        merged, gap = write_merged(request, terminal)
        if has_gate:
            terminal.say(f"gate: {', '.join(f'{weight:.3f}' for weight in merged.gate)}")
            terminal.say(gap_in_words(gap, "the merged base", "give --prompts"))
        else:
            terminal.say("exact: the adapter's experts act all alike")
    print(arguments.output)
    return 0
