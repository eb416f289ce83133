"""Merging under a fixed gate."""

import pytest
import torch
from adapter_cases import PROMPTS, TARGETS, add_adapter, bits, denoiser_of, draw, make_pipeline, same
from export_cases import CONVOLUTIONS, GATE
from peft import LoHaConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from tiny import make_unet
from tuner_cases import config, fill, find_gate

import fera
from fera import FeraConfig, FeraError


class Still(torch.nn.Module):
    """A router that always answers the same."""

    def forward(self, indicator):
        return torch.tensor(GATE).expand(indicator.shape[0], -1)


def hold(pipe, name="default"):
    find_gate(denoiser_of(pipe)).router[name] = Still()
    return pipe


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_merged_is_the_adapter_with_its_gate_held_still(kind):
    expected = draw(hold(add_adapter(make_pipeline(kind))), guidance=2.0)
    pipe = add_adapter(make_pipeline(kind))
    names = set(dict(denoiser_of(make_pipeline(kind)).named_modules()))
    merged = fera.merge(pipe, GATE)
    torch.testing.assert_close(draw(pipe, guidance=2.0), expected, rtol=1e-4, atol=1e-5)
    assert merged.adapter == "default" and merged.gate == pytest.approx(GATE)
    assert all(layer.rpartition("to_")[1] for layer in merged.layers) and len(merged.layers) >= 8
    assert set(dict(denoiser_of(pipe).named_modules())) == names
    assert not hasattr(denoiser_of(pipe), "peft_config")


def test_convolutions_merge_too():
    settings = {"target_modules": [*CONVOLUTIONS, *TARGETS]}
    expected = draw(hold(add_adapter(make_pipeline("sd"), **settings)))
    pipe = add_adapter(make_pipeline("sd"), **settings)
    fera.merge(pipe, GATE)
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)


def test_weights_count_and_other_adapters_stay_routed():
    pipe = add_adapter(add_adapter(make_pipeline("sd")), "neon", seed=1)
    fera.set_adapters(pipe, ["default", "neon"], [0.7, 0.4])
    hold(pipe)
    expected = draw(pipe)
    fera.merge(pipe, GATE)
    torch.testing.assert_close(draw(pipe), expected, rtol=1e-4, atol=1e-5)
    with fera.trace(pipe) as routings:
        draw(pipe)
    assert {routing.adapter for routing in routings} == {"neon"}
    fera.unload(pipe)
    plain = add_adapter(make_pipeline("sd"))
    fera.set_adapters(plain, "default", 0.7)
    fera.merge(plain, GATE)
    torch.testing.assert_close(draw(pipe), draw(plain), rtol=1e-4, atol=1e-5)


def test_the_mean_of_a_trace():
    pipe = add_adapter(make_pipeline("sd"))
    with fera.trace(pipe) as routings:
        draw(pipe, PROMPTS, steps=3)
    mean = torch.cat([routing.gates for routing in routings]).mean(0)
    merged = fera.merge(pipe, routings)
    assert merged.gate == pytest.approx(mean.tolist(), abs=1e-6)


def unchanged(pipe):
    return {name: tensor.clone() for name, tensor in denoiser_of(pipe).state_dict().items()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "say which gate: .*uniform.*fera.trace"),
        ({"gate": [0.5, 0.5]}, "has 3 weights"),
        ({"gate": "uniform", "adapter_name": "ink"}, "no FeRA adapter 'ink' to merge; there are: default"),
    ],
)
def test_errors_change_nothing(arguments, message):
    pipe = add_adapter(make_pipeline("sd"))
    before = unchanged(pipe)
    with pytest.raises(FeraError, match=message):
        fera.merge(pipe, **arguments)
    after = denoiser_of(pipe).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_values_that_are_not_finite_change_nothing():
    pipe = add_adapter(make_pipeline("sd"))
    last = [name for name, _ in denoiser_of(pipe).named_parameters() if "lora_B" in name][-1]
    denoiser_of(pipe).get_parameter(last).data[0, 0] = float("inf")
    before = unchanged(pipe)
    with pytest.raises(FeraError, match="not finite; nothing was merged"):
        fera.merge(pipe, "uniform")
    after = denoiser_of(pipe).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def hard_to_merge(pipe, kind):
    """The pipeline with its last routed layer in a dtype that PEFT cannot merge into."""
    layer = [module for module in denoiser_of(pipe).modules() if isinstance(module, LoraLayer)][-1]
    base = layer.get_base_layer()
    if kind == "float8":
        base.to(torch.float8_e4m3fn)
    else:
        base.weight = torch.nn.Parameter(base.weight.detach().mul(100).to(torch.int8), requires_grad=False)
    return pipe


@pytest.mark.parametrize("kind", ["float8", "int8"])
def test_a_layer_that_cannot_be_merged_into_leaves_the_others_routed(kind):
    pipe = add_adapter(make_pipeline("sd"))
    drawn = draw(pipe)
    pipe = hard_to_merge(pipe, kind)
    before, pointers = bits(pipe.unet), [parameter.data_ptr() for parameter in pipe.unet.parameters()]
    for _ in range(2):
        with pytest.raises(
            FeraError, match=f"cannot merge into unet.*Linear with weights of torch.{kind}.*unquantized"
        ):
            fera.merge(pipe, "uniform")
    assert same(before, bits(pipe.unet))
    assert pointers == [parameter.data_ptr() for parameter in pipe.unet.parameters()]
    assert all(layer.lora_variant and not layer.merged for layer in pipe.unet.modules() if isinstance(layer, LoraLayer))
    original = make_unet()
    for name, module in original.named_modules():
        if isinstance(module, torch.nn.Linear) and name.endswith("to_out.0"):
            held = pipe.unet.get_submodule(name).get_base_layer()
            held.weight = torch.nn.Parameter(module.weight.detach().clone())
            held.bias = torch.nn.Parameter(module.bias.detach().clone())
    assert torch.equal(draw(pipe), drawn)


def test_what_cannot_be_merged():
    model = get_peft_model(make_unet(), config())
    with pytest.raises(FeraError, match="get_base_model"):
        fera.merge(model, "uniform")
    with pytest.raises(FeraError, match="no single merged weight exists.*fera.merge"):
        model.merge_and_unload()
    unet = make_unet()
    inject_adapter_in_model(FeraConfig(expert=LoHaConfig(r=2), target_modules=TARGETS), fill(unet))
    with pytest.raises(FeraError, match="cannot hold the adapter"):
        fera.merge(unet, "uniform")
