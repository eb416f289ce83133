"""The benchmarks: their arithmetic, their meters, and that each of them runs."""

import json
import math
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from tiny import make_unet
from torch import nn
from tuner_cases import fill

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import __main__ as command
from benchmarks.allocations import peak_allocated
from benchmarks.contestants import (
    EXPERTS,
    RANK,
    batch_for,
    emoji_unet,
    generation_step,
    training_step,
    with_fera,
    with_lora,
    with_merged_alone,
    with_released,
)
from benchmarks.layer import LinearLayers
from benchmarks.meters import REPORTED_SPEED, SECONDS, peak_bytes, speed
from benchmarks.race import Comparison, Race, Result, run
from benchmarks.registry import APART, BENCHMARKS, DEFAULT
from benchmarks.released import StackedExperts
from benchmarks.report import Finding, markdown
from benchmarks.setting import Setting
from benchmarks.small_sd15 import EIGHTH, FULL, operations
from fera import FeraConfig, register_denoiser

CPU = torch.device("cpu")

# What trains whole denoisers: many seconds each.
HEAVY = {
    "step",
    "compiled",
    "consistency",
    "memory",
    "run",
    "processes",
    "full",
    "startup",
    "pictures",
    "cached",
    "clips",
    "families",
    "offload",
    "resident",
    "web",
    "quality",
}


class Ticks:
    """A clock that only work moves."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def work(self, *seconds):
        """Work that takes these times, one a call, over and over."""
        calls = iter(seconds * 100)

        def take():
            self.now += next(calls)

        return take


def turns_of(rounds):
    turns = []
    race = Race("", {name: lambda name=name: turns.append(name) or 1 for name in "abc"}, [], rounds, 0, REPORTED_SPEED)
    run(race)
    return turns


def test_each_contestant_has_one_turn_a_round():
    turns = turns_of(40)
    assert [sorted(turns[start : start + 3]) for start in range(0, 120, 3)] == [["a", "b", "c"]] * 40
    assert turns == turns_of(40)


def test_no_contestant_always_follows_the_same_other():
    # In rounds a b c, b c a, c a b, "a" would follow "c" two times of three.
    pairs = Counter(pairwise(turns_of(200)))
    for name in "abc":
        before = [count for (first, second), count in pairs.items() if second == name != first]
        assert len(before) == 2 and min(before) > 0.8 * max(before)


def test_warm_up_is_not_counted():
    clock = Ticks()
    race = Race("", {"a": clock.work(9, 9, 1, 2)}, [], rounds=2, warm_up=2)
    assert run(race, clock=clock)["a"].values == [1, 2]


def test_ratio_is_of_the_same_round():
    # The machine slows down tenfold: medians of times by themselves would say 2 / 10.
    mine, theirs = Result([2, 2, 20]), Result([1, 10, 10])
    assert mine.ratios_to(theirs).values == [2, 0.2, 2]
    assert mine.ratios_to(theirs).median == 2


def test_spread_is_the_middle_eight_tenths():
    assert Result([float(i) for i in range(11)]).spread == (1, 9)
    assert Result([3.0]).spread == (3, 3)


@pytest.mark.parametrize(
    ("comparison", "ratio", "reached"),
    [
        (Comparison("a", "b", at_most=1.05), 1.05, True),
        (Comparison("a", "b", at_most=1.05), 1.0501, False),
        (Comparison("a", "b", at_least=1.5), 1.5, True),
        (Comparison("a", "b", at_least=1.5), 1.49, False),
        (Comparison("a", "b"), 7.0, None),
    ],
)
def test_goals(comparison, ratio, reached):
    assert comparison.is_reached(ratio) is reached


def test_short_work_is_repeated_and_averaged():
    clock = Ticks()
    assert math.isclose(SECONDS.measure(clock.work(0.001, 0.003), clock), 0.002)
    assert clock.now >= 0.02


def test_speed_counts_samples():
    clock = Ticks()
    assert speed(32).measure(clock.work(4.0), clock) == 8


def test_peak_of_blocks_that_come_and_go():
    kept = []

    def work():
        first = torch.empty(1000)
        second = torch.empty(500)
        del first
        kept.append(torch.empty(400))
        del second

    assert peak_allocated(work, CPU) == 4 * (1000 + 500)
    assert peak_bytes(CPU).measure(work, None) == 6000


def test_peak_of_what_autograd_keeps():
    x = torch.ones(1000, requires_grad=True)

    def work():
        # exp keeps its output, and its gradient is made while that is there: y, the slope of y and that of x.
        y = x.exp()
        y.backward(slope)

    slope = torch.ones(1000)
    assert 2 * 4000 <= peak_allocated(work, CPU) <= 3 * 4000
    x.grad = None
    with torch.no_grad():
        assert peak_allocated(lambda: x.exp(), CPU) == 4000


def test_what_was_there_before_does_not_count():
    there = [torch.empty(1_000_000)]

    def work():
        there.clear()
        torch.empty(10)

    assert peak_allocated(work, CPU) == 40


def test_contestants_train_as_many_ranks_on_the_same_layers():
    base = make_unet().requires_grad_(False)
    lora, fera, released = with_lora(base), with_fera(base), with_released(base)

    def adapted(unet):
        return {name for name, module in unet.named_modules() if isinstance(module, LoraLayer)}

    def ranks(unet, *down):
        return sum(p.shape[0] for name, p in unet.named_parameters() if any(word in name for word in down))

    assert adapted(lora) == adapted(fera) != set()
    assert ranks(lora, "lora_A") == ranks(fera, "lora_A") == ranks(released, ".down.0", ".down.1", ".down.2")
    assert ranks(lora, "lora_A") == EXPERTS * RANK * len(adapted(lora))


@pytest.mark.parametrize("build", [with_lora, with_fera, with_released])
def test_training_step_moves_the_adapter_alone(build):
    base = make_unet().requires_grad_(False)
    unet = build(base)
    before = {name: parameter.detach().clone() for name, parameter in unet.named_parameters()}
    step = training_step(unet, batch_for(base, 2, tokens=4))
    step()
    step()
    moved = {name for name, parameter in unet.named_parameters() if not torch.equal(parameter, before[name])}
    trained = {name for name, parameter in unet.named_parameters() if parameter.requires_grad}
    assert moved == trained != set()


def test_contestants_lie_channels_last_as_fera_loads_a_base():
    base = emoji_unet(Setting())
    for unet in (base, with_lora(base), with_fera(base), with_released(base)):
        kernels = [module.weight for module in unet.modules() if isinstance(module, nn.Conv2d)]
        assert kernels and all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)


def test_one_gate_merged_is_what_fera_draws():
    base = make_unet().requires_grad_(False)
    routed, merged = with_fera(base), with_merged_alone(base)
    for unet in (routed, merged):
        fill(unet)
    batch = batch_for(base, 1, tokens=4).guided()
    drawn = generation_step(routed, batch)()
    torch.testing.assert_close(generation_step(merged, batch)(), drawn)
    assert (drawn - generation_step(base, batch)()).abs().max() > 1e-3


def test_small_base_has_the_proportions_of_sd15():
    full, small = operations(FULL), operations(EIGHTH)
    assert small["UNet"] < full["UNet"] / 100
    # Not above: encoding that is dearer than SD 1.5's would favour what encodes once.
    assert 0.85 < small["picture"] / small["UNet"] / (full["picture"] / full["UNet"]) <= 1
    assert 0.6 < small["caption"] / small["UNet"] / (full["caption"] / full["UNet"]) <= 1


def test_released_form_equals_routed_experts():
    """The same weights and the same gate give the same output: contestants do the same work."""
    register_denoiser(LinearLayers, latent="sample")
    torch.manual_seed(0)
    layers = LinearLayers(8, 1)
    released = StackedExperts(layers.layers[0], 3, 2, alpha=6)
    for up in released.up:
        nn.init.normal_(up.weight)
    inject_adapter_in_model(FeraConfig(r=2, num_experts=3, target_modules=["0"]), layers)
    fera = layers.layers[0]
    fera.lora_A["default"].weight.data = torch.cat([down.weight for down in released.down]).detach()
    fera.lora_B["default"].weight.data = torch.cat([up.weight for up in released.up], dim=1).detach()
    released.gate = torch.rand(2, 3).softmax(dim=1)
    x = torch.randn(2, 5, 8)
    with layers.fera.using({"default": released.gate}):
        assert torch.allclose(fera(x), released(x), atol=1e-5)


def test_default_leaves_out_what_takes_long():
    assert set(DEFAULT) | set(APART) == set(BENCHMARKS)
    assert not set(DEFAULT) & set(APART)


def _mark(name):
    if name == "comfyui":
        return pytest.mark.comfyui
    return pytest.mark.slow if name in HEAVY else ()


@pytest.mark.parametrize("name", [pytest.param(name, marks=_mark(name)) for name in BENCHMARKS])
def test_every_benchmark_runs(name):
    races = 0
    for race in BENCHMARKS[name](Setting(small=True)):
        finding = Finding(name, race, run(race, rounds=1))
        assert all(value > 0 for result in finding.results.values() for value in result.values)
        assert finding.rows()
        races += 1
    assert races


def test_command_writes_values_and_ratios(tmp_path, capsys):
    options = [
        "--small",
        "--rounds",
        "2",
        "--json",
        str(tmp_path / "a" / "b.json"),
        "--markdown",
        str(tmp_path / "b.md"),
    ]
    command.main(["indicator", *options])
    assert "convolutions" in capsys.readouterr().out
    found = json.loads((tmp_path / "a" / "b.json").read_text())
    (race,) = found["races"]
    (comparison,) = race["comparisons"]
    ratios = [a / b for a, b in zip(race["values"]["fera"], race["values"]["convolutions"], strict=True)]
    assert math.isclose(comparison["ratio"], sum(ratios) / 2)
    assert (tmp_path / "b.md").read_text().count("\n") == 3


def test_unknown_benchmark_is_refused(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["indicators"])
    assert stopped.value.code == 2
    assert "indicators" in capsys.readouterr().err


def test_markdown_has_ratios_and_no_times():
    race = Race("work", {}, [Comparison("a", "b", at_most=0.5)], 2)
    text = markdown([Finding("x", race, {"a": Result([1.0, 1.0]), "b": Result([3.0, 3.0])})])
    assert text.splitlines()[-1] == "| work | a | b | 0.333 | 0.333 .. 0.333 | <= 0.5 | reached |"
