"""The gate that is chosen by data."""

import itertools

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline
from export_cases import save
from safetensors.torch import load_file
from torch import nn

import fera
from fera import FeraError
from fera.export.best import _on_simplex, best_gate, choose_best
from fera.export.gap import measure_gap, record_walk
from fera.export.writing import export_lora
from fera.tuner import FrequencyGate

GATE = torch.tensor([0.2, 0.7, 0.1])


@pytest.mark.parametrize("seed", range(5))
def test_least_squares_on_the_simplex(seed):
    """Nothing on a fine grid is better."""
    generator = torch.Generator().manual_seed(seed)
    jacobian = torch.randn(3, 20, generator=generator).double()
    target = torch.randn(20, generator=generator).double()
    gram, towards = jacobian @ jacobian.T, jacobian @ target
    found = _on_simplex(gram, towards, torch.full((3,), 1 / 3))
    assert found.min() >= 0 and found.sum() == pytest.approx(1)

    def cost(weights):
        return float((weights @ jacobian - target).square().sum())

    grid = [
        torch.tensor([i, j, 50 - i - j]).double() / 50 for i, j in itertools.product(range(51), repeat=2) if i + j <= 50
    ]
    assert cost(found) <= min(cost(weights) for weights in grid) + 1e-9


class Constant(nn.Module):
    def forward(self, entries):
        return GATE.expand(len(entries), -1)


def test_a_router_that_always_answers_the_same_is_found():
    pipe = add_adapter(make_pipeline("sd"))
    (routing,) = [module for module in pipe.unet.modules() if isinstance(module, FrequencyGate)]
    routing.router["default"] = Constant()
    walk = record_walk(pipe, PROMPTS, steps=3)
    torch.testing.assert_close(best_gate(pipe, walk, torch.full((3,), 1 / 3)), GATE, rtol=0, atol=5e-3)


def test_no_other_gate_is_nearer():
    pipe = add_adapter(make_pipeline("sd"))
    walk = record_walk(pipe, PROMPTS[:1], steps=4)
    best = best_gate(pipe, walk, walk.trace.mean())
    least = measure_gap(pipe, walk, lambda step: best).change
    for other in ([1 / 3] * 3, walk.trace.mean().tolist(), [1, 0, 0], [0, 1, 0], [0, 0, 1], [0.5, 0.25, 0.25]):
        gate = torch.tensor(other)
        assert measure_gap(pipe, walk, lambda step, gate=gate: gate).change >= 0.999 * least
    assert best.min() >= 0 and float(best.sum()) == pytest.approx(1)


def test_it_is_measured_beside_the_others():
    pipe = add_adapter(make_pipeline("sd"))
    chosen = choose_best(pipe, PROMPTS[:1], steps=4)
    assert list(chosen.gaps) == ["uniform", "mean", "best"]
    assert chosen.gaps["best"].change <= 1.02 * min(gap.change for gap in chosen.gaps.values())
    with fera.trace(pipe) as steps:
        pipe("a rocket", num_inference_steps=2)
    assert (steps[0].gates - steps[1].gates).abs().max() > 0, "the router is at work again"


def test_an_export_with_it(tmp_path):
    folder = save(add_adapter(make_pipeline("sd")), tmp_path / "adapter")
    pipe = make_pipeline("sd")
    exported = export_lora(folder, tmp_path / "best", "best", pipe=pipe, prompts=PROMPTS[:1])
    assert exported.gap == exported.compared["best"] and list(exported.compared) == ["uniform", "mean", "best"]
    (gate,) = exported.gates
    again = export_lora(folder, tmp_path / "given", gate, pipe=pipe, prompts=PROMPTS[:1])
    (file,), (other,) = exported.files, again.files

    assert all(torch.equal(tensor, load_file(other)[key]) for key, tensor in load_file(file).items())
    assert not hasattr(pipe.unet, "peft_config") or not pipe.unet.peft_config
    for options, message in (
        ({}, "give a base and prompts"),
        ({"pipe": pipe, "prompts": PROMPTS, "schedule": 2}, "one for all steps"),
    ):
        with pytest.raises(FeraError, match=message):
            export_lora(folder, tmp_path / "none", "best", **options)
    assert not (tmp_path / "none").exists()
