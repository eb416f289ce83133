"""Several adapters in one denoiser, routed and plain: active, weighed, deleted."""

import pytest
import torch
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from tuner_cases import ATTENTION, CASES, UNET, add, config, fill, find_gate, predict, step

import fera

cases = pytest.mark.parametrize("case", CASES, ids=repr)


@cases
def test_two_adapters_add_up_each_under_its_own_gate(case):
    inputs = case.inputs(2, dtype=torch.float64)
    both = get_peft_model(case.model().double(), config(), adapter_name="ink")
    both.add_adapter("neon", config(r=3, num_experts=2, num_bands=4, target_modules=["to_q"]))
    fill(both, 1, "ink"), fill(both, 2, "neon")
    with torch.no_grad():
        both.base_model.set_adapter(["ink", "neon"])
        with fera.trace(both) as routings:
            together = predict(both, inputs)
        assert [(r.adapter, tuple(r.indicator.shape), tuple(r.gates.shape)) for r in routings] == [
            ("ink", (2, 3), (2, 3)),
            ("neon", (2, 4), (2, 2)),
        ]
        outputs = {}
        for name in ("ink", "neon"):
            both.set_adapter(name)
            alone = get_peft_model(case.model().double(), both.peft_config[name], adapter_name=name)
            alone.load_state_dict(both.state_dict(), strict=False)
            outputs[name] = predict(both, inputs)
            torch.testing.assert_close(outputs[name], predict(alone, inputs), rtol=0, atol=0)
        assert (outputs["ink"] - outputs["neon"]).abs().max() > 1e-3
        assert all((together - output).abs().max() > 1e-3 for output in outputs.values())
        both.base_model.set_adapter(["neon", "ink"])
        torch.testing.assert_close(predict(both, inputs), together, rtol=1e-10, atol=1e-12)


def test_set_adapter_moves_what_is_trained(tiny_unet):
    model = get_peft_model(tiny_unet(), config(), adapter_name="ink")
    model.add_adapter("neon", config())
    for name in ("neon", "ink"):
        model.set_adapter(name)
        trainable = [n for n, p in model.named_parameters() if p.requires_grad]
        assert trainable and all(f".{name}." in n for n in trainable)
        assert any("fera.router." in n for n in trainable)
        fill(model, adapter=name)
        step(model, UNET.inputs(2))
        assert all(p.grad is None for n, p in model.named_parameters() if f".{name}." not in n)


@cases
def test_deleting_one_of_two_leaves_the_other(case):
    inputs = case.inputs(2)
    model = get_peft_model(case.model(), config(), adapter_name="ink")
    model.add_adapter("neon", config(num_experts=2))
    fill(model, 1, "ink"), fill(model, 2, "neon")
    with torch.no_grad():
        model.set_adapter("ink")
        expected = predict(model, inputs)
        model.delete_adapter("neon")
        assert torch.equal(predict(model, inputs), expected)
    assert not any("neon" in name for name in model.state_dict())
    assert list(find_gate(model).router) == ["ink"] and list(find_gate(model).inputs) == ["ink"]


def test_deleting_the_active_one_falls_back_to_the_other(tiny_unet):
    inputs = UNET.inputs(2)
    model = get_peft_model(tiny_unet(), config(), adapter_name="ink")
    model.add_adapter("neon", config(num_experts=2))
    fill(model, 1, "ink"), fill(model, 2, "neon")
    with torch.no_grad():
        model.set_adapter("ink")
        expected = predict(model, inputs)
        model.set_adapter("neon")
        model.delete_adapter("neon")
        assert find_gate(model).active_adapters == ["ink"]
        assert torch.equal(predict(model, inputs), expected)


@pytest.mark.parametrize("lora_first", [True, False])
def test_a_plain_lora_beside_fera(tiny_unet, lora_first):
    inputs = UNET.inputs(2, dtype=torch.float64)
    plain = LoraConfig(r=3, lora_alpha=5, target_modules=ATTENTION + ["ff.net.0.proj"])
    model = tiny_unet().double()
    for name in ("plain", "routed") if lora_first else ("routed", "plain"):
        inject_adapter_in_model({"plain": plain, "routed": config()}[name], model, name)
    fill(model, 1, "plain"), fill(model, 2, "routed")
    layers = [m for m in model.modules() if isinstance(m, BaseTunerLayer)]

    def activate(*names):
        for layer in layers:
            layer.set_adapter(list(names))

    with torch.no_grad():
        activate("plain")
        lora = get_peft_model(tiny_unet().double(), plain, adapter_name="plain")
        lora.base_model.model.load_state_dict(model.state_dict(), strict=False)
        assert torch.equal(predict(model, inputs), predict(lora, inputs))
        activate("routed")
        routed = inject_adapter_in_model(config(), tiny_unet().double(), "routed")
        routed.load_state_dict(model.state_dict(), strict=False)
        alone = predict(model, inputs)
        torch.testing.assert_close(alone, predict(routed, inputs), rtol=1e-12, atol=1e-12)
        activate("plain", "routed")
        with fera.trace(model) as routings:
            together = predict(model, inputs)
        assert [r.adapter for r in routings] == ["routed"]
        assert (together - alone).abs().max() > 1e-3


def test_a_weight_scales_experts_and_not_the_gate(tiny_unet):
    inputs = UNET.inputs(2, dtype=torch.float64)
    model = fill(inject_adapter_in_model(config(), tiny_unet().double()))
    doubled = fill(inject_adapter_in_model(config(lora_alpha=8), tiny_unet().double()))
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, BaseTunerLayer):
                layer.set_scale("default", 2.0)
        assert torch.equal(predict(model, inputs), predict(doubled, inputs))


def test_diffusers_set_adapters_with_weights(tiny_unet):
    inputs = UNET.inputs(2, dtype=torch.float64)
    model = tiny_unet()
    for seed, name in enumerate(("ink", "neon")):
        model.add_adapter(config(), adapter_name=name)
        fill(model, seed, name)
    model.double()
    with torch.no_grad():
        model.set_adapters(["ink", "neon"], weights=[0.0, 1.0])
        mixed = predict(model, inputs)
        model.set_adapters(["neon"], weights=[1.0])
        torch.testing.assert_close(mixed, predict(model, inputs), rtol=1e-5, atol=1e-6)
        model.set_adapters(["ink"], weights=[0.0])
        expected = predict(tiny_unet().double(), inputs)
        torch.testing.assert_close(predict(model, inputs), expected, rtol=1e-5, atol=1e-6)


def test_the_scale_of_a_pipeline_call_reaches_the_experts(tiny_unet):
    inputs = UNET.inputs(2)
    model = fill(add(tiny_unet()))
    with torch.no_grad():
        off = model(**inputs, cross_attention_kwargs={"scale": 0.0}).sample
        torch.testing.assert_close(off, predict(tiny_unet(), inputs), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(predict(model, inputs), off)
