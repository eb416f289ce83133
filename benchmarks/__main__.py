"""Times indicator, layer and training step beside their alternatives, and prints tables with ratios."""

import argparse
import copy
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from peft import LoraConfig, inject_adapter_in_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from benchmarks.released import StackedExperts, convolution_indicator
from benchmarks.timing import Result, race
from fera import FeraConfig, FrequencyBands, SoftFrequencyRouter, register_denoiser
from fera.demo import base_path

TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
EXPERTS, RANK = 3, 4
WIDE = EXPERTS * RANK  # rank of the plain LoRA of the same size


@dataclass(frozen=True)
class Goal:
    """How one contestant's time should compare with another's.

    Args:
        contestant: whose time.
        reference: over whose.
        at_most: the ratio to reach.
    """

    contestant: str
    reference: str
    at_most: float


@dataclass(frozen=True)
class Benchmark:
    """One race.

    Args:
        title: what is timed.
        contestants: name to what is timed.
        rounds: how often.
        goals: ratios to reach.
    """

    title: str
    contestants: dict[str, Callable[[], object]]
    rounds: int
    goals: list[Goal]


def indicator(shape: tuple[int, int, int, int], goals: bool) -> Benchmark:
    """Latent to gate: convolutions against transfer functions."""
    latent, bands, router = torch.randn(shape), FrequencyBands(3), SoftFrequencyRouter(3, EXPERTS)

    def released() -> Tensor:
        with torch.no_grad():
            return router(convolution_indicator(latent, 3))

    def fera() -> Tensor:
        with torch.no_grad():
            return router(bands.indicator(latent))

    return Benchmark(
        f"indicator and router, latent {shape}",
        {"convolutions": released, "fera": fera},
        rounds=40,
        goals=[Goal("fera", "convolutions", 1 / 20)] * goals,
    )


class OneLayer(nn.Module):
    """The smallest denoiser: one linear layer.

    Args:
        width: features in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.to_q = nn.Linear(width, width)

    def forward(self, sample: Tensor) -> Tensor:
        """Not called: the layer is timed by itself."""
        raise NotImplementedError


def layer() -> Benchmark:
    """One adapted linear layer, forward and backward."""
    shape = (4, 1024, 640)
    register_denoiser(OneLayer, latent="sample")
    base = OneLayer(shape[-1]).requires_grad_(False)
    lora, fera = copy.deepcopy(base), copy.deepcopy(base)
    inject_adapter_in_model(LoraConfig(r=WIDE, lora_alpha=WIDE, target_modules=["to_q"]), lora)
    inject_adapter_in_model(FeraConfig(r=RANK, num_experts=EXPERTS, target_modules=["to_q"]), fera)
    released = StackedExperts(base.to_q, EXPERTS, RANK, alpha=WIDE)
    x, slope = torch.randn(shape, requires_grad=True), torch.randn(shape)
    gate = torch.rand(4, EXPERTS).softmax(dim=1).requires_grad_()
    released.gate = gate

    def run(module: nn.Module) -> None:
        x.grad = None
        module(x).backward(slope)

    def run_fera() -> None:
        with fera.fera.using({"default": gate}):
            run(fera.to_q)

    return Benchmark(
        f"one linear layer, input {shape}, r={RANK}, E={EXPERTS}, forward and backward",
        {
            "base only": lambda: run(base.to_q),
            "released form": lambda: run(released),
            f"PEFT LoRA r={WIDE}": lambda: run(lora.to_q),
            "fera": run_fera,
        },
        rounds=40,
        goals=[Goal("fera", f"PEFT LoRA r={WIDE}", 1.05), Goal("fera", "released form", 0.75)],
    )


def training_step(batch: int) -> Benchmark:
    """Forward, backward and AdamW of the emoji base's UNet, adapters on its attention."""
    base = UNet2DConditionModel.from_pretrained(base_path(), subfolder="unet")
    base.requires_grad_(False).train()
    size, width = base.config.sample_size, base.config.cross_attention_dim
    latent, target = torch.randn(batch, 4, size, size), torch.randn(batch, 4, size, size)
    inputs = {"timestep": torch.rand(batch) * 1000, "encoder_hidden_states": torch.randn(batch, 16, width)}

    lora, fera, released = (copy.deepcopy(base) for _ in range(3))
    inject_adapter_in_model(LoraConfig(r=WIDE, lora_alpha=WIDE, target_modules=TARGETS), lora)
    inject_adapter_in_model(FeraConfig(r=RANK, num_experts=EXPERTS, target_modules=TARGETS), fera)
    stacked = stack_experts(released)
    router = SoftFrequencyRouter(3, EXPERTS)
    released.router = router

    def step(unet: nn.Module) -> Callable[[], None]:
        trainable = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trainable, lr=1e-4) if trainable else None

        def run() -> None:
            # Without anything to train, the latent's gradient keeps the backward pass whole.
            sample = latent.clone().requires_grad_(not trainable)
            loss = (unet(sample, **inputs).sample - target).square().mean()
            loss.backward()
            if optimizer is not None:
                optimizer.step()
                optimizer.zero_grad()

        return run

    step_released = step(released)

    def run_released() -> None:
        gate = router(convolution_indicator(latent, 3))
        for module in stacked:
            module.gate = gate
        step_released()

    return Benchmark(
        f"training step of the emoji base's UNet, batch {batch}, attention, r={RANK}, E={EXPERTS}",
        {
            "base only": step(base),
            "released form": run_released,
            f"PEFT LoRA r={WIDE}": step(lora),
            "fera": step(fera),
        },
        rounds=16,
        goals=[Goal("fera", f"PEFT LoRA r={WIDE}", 1.05), Goal("fera", "released form", 0.75)],
    )


def stack_experts(unet: nn.Module) -> list[StackedExperts]:
    """Replace a UNet's attention projections by stacked experts."""
    stacked = []
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(tuple(f".{target}" for target in TARGETS)):
            parent, _, child = name.rpartition(".")
            stacked.append(StackedExperts(module, EXPERTS, RANK, alpha=WIDE))
            setattr(unet.get_submodule(parent), child, stacked[-1])
    return stacked


def benchmarks(names: list[str]) -> Iterator[Benchmark]:
    """The chosen races, each built when its turn comes."""
    if "indicator" in names:
        yield indicator((8, 4, 64, 64), goals=True)
        yield indicator((8, 4, 16, 16), goals=False)
        yield indicator((2, 16, 128, 128), goals=False)
        yield indicator((4, 4, 64, 256), goals=False)
    if "layer" in names:
        yield layer()
    if "step" in names:
        yield training_step(batch=8)


def table(benchmark: Benchmark, results: dict[str, Result]) -> Table:
    """Times and ratios of one race."""
    references = list(dict.fromkeys(name for name in results if name not in ("base only", "fera")))
    view = Table(title=benchmark.title, title_justify="left")
    view.add_column("")
    for heading in ("median ms", "10 % .. 90 %", "least ms", *(f"over {name}" for name in references)):
        view.add_column(heading, justify="right")
    for name, result in results.items():
        low, high = (1000 * value for value in result.spread)
        ratios = [f"{result.ratio_to(results[reference]):.3f}" for reference in references]
        view.add_row(
            name, f"{1000 * result.median:.2f}", f"{low:.2f} .. {high:.2f}", f"{1000 * result.least:.2f}", *ratios
        )
    return view


def main() -> None:
    """Run the races that the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    choices = ["indicator", "layer", "step"]
    parser.add_argument("only", nargs="*", help=f"which of {', '.join(choices)}; all by default")
    parser.add_argument("--threads", type=int, help="threads of PyTorch; its own choice by default")
    parser.add_argument("--rounds", type=int, help="rounds of every race")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count the process's CPU time, not the wall's: for a busy machine; implies one thread",
    )
    parser.add_argument("--json", type=Path, help="also write every time to this file")
    options = parser.parse_args()
    if unknown := sorted(set(options.only) - set(choices)):
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(choices)}")
    if options.threads or options.cpu_time:
        torch.set_num_threads(1 if options.cpu_time else options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(0)

    console = Console(width=120)
    machine = {
        "torch": torch.__version__,
        "clock": "cpu" if options.cpu_time else "wall",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.machine(),
    }
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    console.print("Contestants take turns; ratios are medians over the rounds of one time over another.\n")
    written = []
    for benchmark in benchmarks(options.only or choices):
        results = race(benchmark.contestants, options.rounds or benchmark.rounds, clock=clock)
        console.print(table(benchmark, results))
        for goal in benchmark.goals:
            ratio = results[goal.contestant].ratio_to(results[goal.reference])
            verdict = "reached" if ratio <= goal.at_most else "missed"
            console.print(f"{goal.contestant} over {goal.reference}: {ratio:.3f}, goal {goal.at_most:.3f}: {verdict}")
        console.print()
        times = {name: result.seconds for name, result in results.items()}
        written.append({"title": benchmark.title, "seconds": times})
    if options.json:
        options.json.write_text(json.dumps({"machine": machine, "benchmarks": written}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
