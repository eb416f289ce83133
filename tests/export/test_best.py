"""The gate that is chosen by data."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, make_pipeline
from export_cases import save
from peft import LoHaConfig, inject_adapter_in_model
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

import fera
from fera import FeraConfig, FeraError
from fera.export import writing
from fera.export.best import best_gate, choose_best
from fera.export.by_layer import _downs, _scaled, best_by_layer, measure_by_layer
from fera.export.gap import measure_gap, predict_with, record_walk
from fera.export.simplex import least_squares
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
    found = least_squares(gram, towards, torch.full((3,), 1 / 3))
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


# A gate for each layer


def test_gates_by_layer_are_nearer():
    pipe = add_adapter(make_pipeline("sd"), router_input="log_energies+timestep", temperature=3.0)
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    walk = record_walk(pipe, PROMPTS[:1], steps=2)
    best = best_gate(pipe, walk, walk.trace.mean())
    gates = best_by_layer(pipe, walk, best)
    assert all(gate.min() >= 0 and float(gate.sum()) == pytest.approx(1) for gate in gates.values())
    one = measure_gap(pipe, walk, lambda step: best).change
    assert measure_by_layer(pipe, walk, gates).change < 0.95 * one
    alike = {path: best for path in gates}
    assert measure_by_layer(pipe, walk, alike).change == pytest.approx(one, rel=1e-4)
    assert all(torch.equal(before[name], weight) for name, weight in pipe.unet.state_dict().items())


def test_gates_of_layers_that_are_known_are_found():
    """The routed answers are those of other gates in two layers."""
    pipe = add_adapter(make_pipeline("sd"), target_modules=["attn1.to_q", "attn2.to_v"])
    walk = record_walk(pipe, PROMPTS[:1], steps=2)
    even = torch.full((3,), 1 / 3)
    downs = _downs(pipe.unet, "default")
    wanted = {path: even for path in downs}
    wanted |= dict(zip(list(wanted)[:2], (torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.1, 0.1, 0.8])), strict=True))
    with torch.no_grad(), _scaled(downs, torch.stack([wanted[path] for path in downs])):
        answers = [predict_with(pipe.unet, "default", even, call) for call in walk.calls]
    walk = replace(walk, routed=answers)
    before = measure_gap(pipe, walk, lambda step: even).change
    assert measure_by_layer(pipe, walk, best_by_layer(pipe, walk, even)).change < 0.1 * before
    assert measure_by_layer(pipe, walk, wanted).change < 1e-3 * before


def test_an_export_by_layer(tmp_path, monkeypatch):
    folder = save(add_adapter(make_pipeline("sd"), target_modules=["to_q"]), tmp_path / "adapter")
    pipe = make_pipeline("sd")
    monkeypatch.setattr(writing, "_STEPS", 2)
    exported = export_lora(folder, tmp_path / "best", "best-by-layer", pipe=pipe, prompts=PROMPTS[:1])
    assert list(exported.compared) == ["uniform", "mean", "best", "best by layer"]
    assert exported.gap == exported.compared["best by layer"]
    with safe_open(exported.files[0], framework="pt") as file:
        about = json.loads(file.metadata()["fera_export"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    gates = about["gates_by_layer"]
    again = export_lora(folder, tmp_path / "one", exported.gates[0])
    plain = load_file(again.files[0])
    for path, gate in gates.items():
        weights = torch.tensor(gate).repeat_interleave(2) / torch.tensor(exported.gates[0]).repeat_interleave(2)
        key = f"unet.{path}.lora_B.weight"
        kept = torch.tensor(exported.gates[0]).repeat_interleave(2) > 1e-3
        torch.testing.assert_close(tensors[key][:, kept], (plain[key] * weights)[:, kept], rtol=1e-3, atol=1e-5)


def test_gates_by_layer_are_for_loras(tmp_path):
    pipe = make_pipeline("sd")
    settings = FeraConfig(target_modules=["to_q"], expert=LoHaConfig(r=2))
    inject_adapter_in_model(settings, pipe.unet, "default")
    fera.save_adapter(pipe, tmp_path / "loha")
    with pytest.raises(FeraError, match="a gate for each layer is for LoRA experts"):
        export_lora(tmp_path / "loha", tmp_path / "x", "best-by-layer", pipe=make_pipeline("sd"), prompts=PROMPTS[:1])
