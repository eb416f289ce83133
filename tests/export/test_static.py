"""The gate of a static LoRA, and the LoRA under it."""

import pytest
import torch
from adapter_cases import PROMPTS, add_adapter, draw, make_pipeline
from export_cases import CONVOLUTIONS, GATE, layers_of, routed, save, write_trace
from peft import LoHaConfig
from safetensors.torch import load_file, save_file

import fera
from fera import FeraConfig, FeraError
from fera.adapters.file import open_adapter
from fera.export.static import check_plain, static_lora
from fera.format import WEIGHTS
from fera.method.routing import Routing
from fera.traces.curves import routing_curves, save_csv
from fera.traces.gates import GateTrace, choose_gate, read_trace, trace_of


def routing(gate, timestep=1.0, adapter="default"):
    return Routing(adapter, torch.tensor(timestep), torch.tensor([[0.5, 0.5]]), torch.tensor([gate]))


# Gates


def test_choices():
    torch.testing.assert_close(choose_gate("uniform", 4), torch.full((4,), 0.25))
    torch.testing.assert_close(choose_gate(GATE, 3), torch.tensor(GATE))
    recorded = [routing([1.0, 0.0], 9.0), routing([0.0, 1.0], 1.0), routing([0.0, 1.0], 5.0)]
    torch.testing.assert_close(choose_gate(recorded, 2), torch.tensor([1 / 3, 2 / 3]))


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (None, "say which gate: .*uniform"),
        ("mean", "unknown gate 'mean'"),
        ([0.5, 0.5], "has 3 weights, one an expert; got 2"),
        ([0.5, 0.5, 0.5], "sum to 1"),
        ([-0.5, 0.5, 1.0], "at least 0"),
        ([float("nan"), 0.5, 0.5], "at least 0"),
        (["a", "b", "c"], "is no gate"),
        (7, "is no gate"),
        ([], "got 0"),
        ([routing([1.0, 0.0])], "gates of 2 experts, the adapter has 3"),
    ],
)
def test_no_gate(choice, message):
    with pytest.raises(FeraError, match=message):
        choose_gate(choice, 3)


def test_the_table_of_a_trace_says_what_the_trace_says(tmp_path):
    pipe = add_adapter(make_pipeline("sd"))
    with fera.trace(pipe) as routings:
        draw(pipe, PROMPTS, steps=3)
    save_csv(routing_curves(routings), tmp_path / "gates.csv")
    read, recorded = read_trace(tmp_path / "gates.csv"), trace_of(routings)
    assert read.timesteps == pytest.approx(recorded.timesteps)
    torch.testing.assert_close(read.gates, recorded.gates, atol=1e-5, rtol=0)
    torch.testing.assert_close(recorded.mean(), torch.cat([routing.gates for routing in routings]).mean(0))


def test_a_trace_splits_into_ranges_that_cover_it():
    trace = GateTrace([float(t) for t in range(7, 0, -1)], torch.eye(7))
    parts = trace.split(3)
    assert [part.timesteps for part in parts] == [[7.0, 6.0], [5.0, 4.0, 3.0], [2.0, 1.0]]
    assert torch.equal(torch.cat([part.gates for part in parts]), trace.gates)
    for count in (0, 8):
        with pytest.raises(FeraError, match="the trace has 7"):
            trace.split(count)


def test_traces_that_do_not_tell(tmp_path):
    two = [routing([1.0, 0.0]), routing([0.0, 1.0], adapter="neon")]
    with pytest.raises(FeraError, match="holds the adapters: default, neon; record"):
        trace_of(two)
    assert trace_of(two, "neon").mean().tolist() == [0.0, 1.0]
    with pytest.raises(FeraError, match="none"):
        trace_of([])
    with pytest.raises(FeraError, match="cannot be read"):
        read_trace(tmp_path / "none.csv")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(FeraError, match="is no trace"):
        read_trace(tmp_path / "other.csv")
    damaged = write_trace(tmp_path / "gates.csv", [GATE])
    damaged.write_text(damaged.read_text().replace("0.3", "x"))
    with pytest.raises(FeraError, match="is damaged"):
        read_trace(damaged)


# The LoRA


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"use_rslora": True},
        {"rank_pattern": {"to_q": 3}, "alpha_pattern": {"attn1.to_k": 7}},
        {"target_modules": [*CONVOLUTIONS, "to_q"]},
    ],
    ids=["plain", "rslora", "patterns", "convolutions"],
)
def test_each_layer_is_the_gated_sum_of_its_experts(tmp_path, settings):
    _, folder = routed("sd", tmp_path, **settings)
    lora = static_lora(open_adapter(folder), torch.tensor(GATE))
    layers = layers_of("sd", **settings)
    assert lora.layers.keys() == layers.keys()
    for name, (down, up, scale) in layers.items():
        ranks = down.shape[0] // 3
        downs, ups = down.double().split(ranks), up.double().split(ranks, dim=1)
        expected = sum(
            gate * scale * (b.flatten(1) @ a.flatten(1)) for gate, a, b in zip(GATE, downs, ups, strict=True)
        )
        pair = lora.layers[name]
        found = pair.up.double().flatten(1) @ pair.down.double().flatten(1)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert torch.equal(pair.down, down)


def test_precision_is_kept(tmp_path):
    _, folder = routed("sd", tmp_path)
    file = open_adapter(folder)
    save_file({key: value.half() for key, value in file.tensors().items()}, folder / WEIGHTS, file.metadata)
    lora = static_lora(open_adapter(folder), torch.tensor(GATE))
    assert {tensor.dtype for pair in lora.layers.values() for tensor in (pair.up, pair.down)} == {torch.float16}


def test_what_no_lora_holds(tmp_path):
    with pytest.raises(FeraError, match="LoHaConfig: a plain LoRA is an export format that cannot hold the adapter"):
        check_plain(FeraConfig(expert=LoHaConfig(r=2), target_modules=["to_q"]))
    pipe, folder = routed("sd", tmp_path)
    metadata = open_adapter(folder).metadata
    tensors = load_file(folder / WEIGHTS)
    for extra, without, message in (
        ({"base_model.model.conv_in.weight": torch.zeros(1)}, "", "conv_in.weight, which is no part of a LoRA"),
        ({}, "attn1.to_q.experts_B", "has one side alone of the experts of .*attn1.to_q"),
    ):
        kept = {key: value for key, value in tensors.items() if not without or without not in key}
        save_file(kept | extra, folder / WEIGHTS, metadata)
        with pytest.raises(FeraError, match=message):
            static_lora(open_adapter(folder), torch.tensor(GATE))
    assert save(pipe, folder)
