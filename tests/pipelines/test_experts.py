"""A gate held still, and the experts' weight updates against updates that are formed."""

import copy
import csv

import pytest
import torch
from adapter_cases import PROMPTS, TARGETS, add_adapter, bits, draw, make_pipeline, same
from peft import LoHaConfig, inject_adapter_in_model
from PIL import Image

import fera
from fera import FeraConfig, FeraError
from fera.analysis.routing_plots import plot_updates
from fera.analysis.routing_words import update_words
from fera.analysis.tables import save_updates
from fera.analysis.updates import expert_updates
from fera.pipelines.experts import fixed_gate, one_hot


@pytest.fixture(scope="module", params=["sd", "sd3"])
def pipe(request):
    return add_adapter(make_pipeline(request.param), "ink", seed=1)


# A gate held still


@pytest.mark.parametrize("gate", ["uniform", (0.0, 1.0, 0.0), (0.2, 0.3, 0.5)])
def test_a_fixed_gate_is_the_merged_adapter(pipe, gate):
    merged = copy.deepcopy(pipe)
    fera.merge(merged, gate, adapter_name="ink")
    with fixed_gate(pipe, gate, adapter_name="ink"):
        held = draw(pipe)
    torch.testing.assert_close(held, draw(merged), rtol=1e-3, atol=1e-4)


def test_the_router_is_back_afterwards(pipe):
    before, weights = draw(pipe), bits(pipe.components.get("unet") or pipe.transformer)
    with pytest.raises(RuntimeError, match="enough"), fixed_gate(pipe, one_hot(2, 3), adapter_name="ink"):
        held = draw(pipe)
        raise RuntimeError("enough")
    assert not torch.allclose(held, before)
    assert torch.equal(draw(pipe), before)
    assert same(bits(pipe.components.get("unet") or pipe.transformer), weights)


def test_traces_show_the_fixed_gate_and_guidance_has_it_too(pipe):
    with fixed_gate(pipe, one_hot(1, 3), adapter_name="ink"), fera.trace(pipe) as steps:
        draw(pipe, PROMPTS, guidance=3.0)
    assert steps and all(torch.equal(step.gates, torch.tensor([[0.0, 1.0, 0.0]] * 4)) for step in steps)


def test_other_adapters_stay_routed():
    pipe = add_adapter(add_adapter(make_pipeline("sd"), "ink", seed=1), "neon", seed=2, num_experts=2)
    fera.set_adapters(pipe, ["ink", "neon"])
    with fera.trace(pipe) as free:
        draw(pipe, steps=1)
    with fixed_gate(pipe, "uniform", adapter_name="neon"), fera.trace(pipe) as held:
        draw(pipe, steps=1)
    assert torch.equal(free[0].gates, held[0].gates)
    assert torch.equal(held[1].gates, torch.full((2, 2), 0.5)) and not torch.equal(free[1].gates, held[1].gates)


@pytest.mark.parametrize(
    ("gate", "name", "message"),
    [
        ((1.0, 0.0), "ink", "has 3 weights, one an expert; got 2"),
        ((0.5, 0.5, 0.5), "ink", "sum to 1"),
        ("mean", "ink", "unknown gate 'mean'"),
        ("uniform", "neon", "no FeRA adapter 'neon'"),
    ],
)
def test_what_is_no_gate_or_no_adapter(pipe, gate, name, message):
    with pytest.raises(FeraError, match=message), fixed_gate(pipe, gate, adapter_name=name):
        pass


# Weight updates


def formed(pipe, kind=None):
    """The experts' updates as matrices, flattened and joined, shape (E, P)."""
    denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer
    parts = []
    for path, module in denoiser.named_modules():
        if hasattr(module, "lora_A") and "ink" in module.lora_A and (kind is None or path.endswith(kind)):
            down, up = (getattr(module, side)["ink"].weight.double() for side in ("lora_A", "lora_B"))
            deltas = [
                module.scaling["ink"] * b @ a for a, b in zip(down.chunk(3, dim=0), up.chunk(3, dim=1), strict=True)
            ]
            parts.append(torch.stack([delta.flatten() for delta in deltas]))
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", ["all", "to_q", "to_out.0"])
@torch.no_grad()
def test_norms_and_cosines_are_those_of_formed_updates(pipe, kind):
    updates = expert_updates(pipe, adapter_name="ink")
    rows = formed(pipe, None if kind == "all" else kind)
    torch.testing.assert_close(updates.norms[kind], rows.norm(dim=1))
    expected = torch.nn.functional.cosine_similarity(rows[:, None], rows[None], dim=2)
    torch.testing.assert_close(updates.cosines[kind], expected)
    assert set(updates.layers) >= {"to_q", "to_k", "to_v", "to_out.0"}


def test_equal_experts_are_found_and_untrained_ones_too(tmp_path):
    pipe = add_adapter(make_pipeline("sd"), "ink")
    with torch.no_grad():
        for module in pipe.unet.modules():
            if hasattr(module, "lora_A") and "ink" in module.lora_A:
                down, up = module.lora_A["ink"].weight, module.lora_B["ink"].weight
                down[2:4], up[:, 2:4] = down[:2], 2 * up[:, :2]
    updates = expert_updates(pipe, adapter_name="ink")
    assert float(updates.cosines["all"][0, 1]) == pytest.approx(1)
    assert float(updates.norms["all"][1] / updates.norms["all"][0]) == pytest.approx(2)
    assert "experts 1 and 2, with cosine similarity 1.00: they do nearly the same" in " ".join(update_words(updates))
    with torch.no_grad():
        for module in pipe.unet.modules():
            if hasattr(module, "lora_B") and "ink" in module.lora_B:
                module.lora_B["ink"].weight.zero_()
    fresh = expert_updates(pipe, adapter_name="ink")
    assert not fresh.cosines["all"].any() and "untrained" in update_words(fresh)[-1]
    save_updates(updates, tmp_path / "updates.csv")
    rows = list(csv.DictReader((tmp_path / "updates.csv").open()))
    assert len(rows) == 5 * 3 and rows[-3]["layers"] == "all" and float(rows[-3]["cosine with expert 2"]) == 1.0
    plot_updates(updates, tmp_path / "updates.png")
    with Image.open(tmp_path / "updates.png") as image:
        assert len(image.convert("RGB").getcolors(1_000_000)) > 10


def test_convolutions_count_like_matrices():
    pipe = add_adapter(make_pipeline("sd"), "ink", target_modules=["conv1"])
    updates = expert_updates(pipe, adapter_name="ink")
    total = torch.zeros(3, dtype=torch.float64)
    for module in pipe.unet.modules():
        if hasattr(module, "lora_A") and "ink" in module.lora_A:
            down, up = module.lora_A["ink"].weight.double(), module.lora_B["ink"].weight.double()
            for e in range(3):
                delta = torch.einsum("or,rihw->oihw", up[:, 2 * e : 2 * e + 2, 0, 0], down[2 * e : 2 * e + 2])
                total[e] += (module.scaling["ink"] * delta).square().sum()
    torch.testing.assert_close(updates.norms["conv1"].detach(), total.sqrt().detach())


def test_other_schemes_and_missing_adapters():
    pipe = make_pipeline("sd")
    inject_adapter_in_model(FeraConfig(expert=LoHaConfig(r=2), target_modules=TARGETS), pipe.unet, "ink")
    assert expert_updates(pipe, adapter_name="ink") is None
    assert "no LoRAs" in update_words(None)[0]
    with pytest.raises(FeraError, match="no FeRA adapter 'neon'"):
        expert_updates(pipe, adapter_name="neon")
