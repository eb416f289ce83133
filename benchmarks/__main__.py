"""Measures fera beside what it could be instead, and prints tables with ratios."""

import argparse
import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.race import run
from benchmarks.report import Finding, markdown, table
from benchmarks.setting import Setting
from fera.cli.quiet import quiet_libraries

_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def main(argv: list[str] | None = None) -> None:
    """Run the benchmarks that the command line asks for."""
    quiet_libraries()
    from benchmarks.registry import BENCHMARKS, DEFAULT  # its imports are what would talk

    options = _checked(_parser(), argv)
    setting = Setting(options.small, torch.device(options.device), _DTYPES[options.precision])
    if options.threads or options.cpu_time:
        torch.set_num_threads(1 if options.cpu_time else options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter

    console = Console(width=140)
    machine = _machine(options.cpu_time, setting)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    console.print("Contestants take turns; a ratio is the median over the rounds of one measure over another.\n")
    findings: list[Finding] = []
    for name in options.only or DEFAULT:
        torch.manual_seed(0)
        for race in BENCHMARKS[name](setting):
            findings.append(Finding(name, race, run(race, rounds=options.rounds, clock=clock)))
            console.print(table(findings[-1]))
            console.print()
            # After each: what was measured is not lost when a later one fails.
            _write(
                options.json, json.dumps({"machine": machine, "races": [one.record() for one in findings]}, indent=1)
            )
    if options.markdown:
        _write(options.markdown, markdown(findings))
    console.print(f"all values: {options.json}")


def _parser() -> argparse.ArgumentParser:
    from benchmarks.registry import APART, BENCHMARKS

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "only",
        nargs="*",
        choices=[[], *BENCHMARKS],
        metavar="NAME",
        help=f"which of {', '.join(BENCHMARKS)}; all but {', '.join(APART)} by default",
    )
    parser.add_argument("--threads", type=int, help="threads of PyTorch; its own choice by default")
    parser.add_argument("--rounds", type=int, help="rounds of every race, in place of its own number")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's CPU time, not the wall's: for a busy machine; implies one thread",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to run (%(default)s)")
    parser.add_argument(
        "--precision",
        choices=list(_DTYPES),
        default="fp32",
        help="of the frozen weights; adapters train in float32, under autocast (%(default)s)",
    )
    parser.add_argument(
        "--small", action="store_true", help="tiny sizes, to see that all of it runs; their ratios mean nothing"
    )
    parser.add_argument("--json", type=Path, default=Path("runs/bench.json"), help="file for all values (%(default)s)")
    parser.add_argument("--markdown", type=Path, help="also write the ratios as a table to this file")
    return parser


def _checked(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Options that go together."""
    options = parser.parse_args(argv)
    if options.device != "cpu" and not torch.cuda.is_available():
        parser.error(f"--device {options.device}: PyTorch finds no GPU here")
    if options.device != "cpu" and options.cpu_time:
        parser.error("--cpu-time does not see what a GPU does: leave it out")
    return options


def _machine(cpu_time: bool, setting: Setting) -> dict[str, object]:
    libraries = ("torch", "peft", "diffusers", "accelerate")
    device = "cpu" if setting.is_cpu else torch.cuda.get_device_name(setting.device)
    return (
        {"device": device, "precision": setting.mixed_precision}
        | {name: version(name) for name in libraries}
        | {
            "clock": "cpu" if cpu_time else "wall",
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "machine": platform.machine(),
        }
    )


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
