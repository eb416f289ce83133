"""From a base to a routed model and back: injection, several adapters, saving, loading, copies, unloading."""

import copy
import pickle

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from tuner_cases import ATTENTION, CASES, UNET, config, fill, find_gate, predict, step

import fera
from fera import FeraConfig, FeraError

cases = pytest.mark.parametrize("case", CASES, ids=repr)


def wrap(base):
    return get_peft_model(base, config())


def inject(base):
    return inject_adapter_in_model(config(), base)


def add(base):
    base.add_adapter(config())
    return base


def anatomy(model):
    """Everything of a model that an adapter could leave a trace in."""
    return {
        "modules": {name: type(module) for name, module in model.named_modules()},
        "state": {name: tensor.clone() for name, tensor in model.state_dict().items()},
        "trainable": {name: p.requires_grad for name, p in model.named_parameters()},
        "hooks": {
            name: (len(m._forward_pre_hooks), len(m._forward_hooks), len(m._forward_hooks_always_called))
            for name, m in model.named_modules()
        },
        "configs": dict(getattr(model, "peft_config", {})),
    }


def same_anatomy(before, after):
    assert before["state"].keys() == after["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(tensor, after["state"][name]), name
    for part in ("modules", "trainable", "hooks", "configs"):
        assert before[part] == after[part], part


# A fresh adapter


@cases
@pytest.mark.parametrize("build", [wrap, inject, add])
def test_a_fresh_adapter_changes_nothing(case, build):
    inputs = case.inputs(3)
    with torch.no_grad():
        expected = predict(case.model(), inputs)
        assert torch.equal(predict(build(case.model()), inputs), expected)


@cases
def test_the_base_keeps_its_weights_bit_for_bit(case):
    base = case.model()
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    model = fill(get_peft_model(base, config()))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for seed in range(3):
        step(model, case.inputs(2, seed=seed))
        optimizer.step()
    with model.disable_adapter():
        predict(model, case.inputs(2))
    assert torch.equal(predict(model.unload(), case.inputs(2)), predict(case.model(), case.inputs(2)))
    after = model.base_model.model.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(after[name], tensor), name


@cases
@pytest.mark.parametrize("build", [wrap, inject])
def test_only_experts_and_router_are_trainable(case, build):
    model = build(case.model())
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    own = {name for name, _ in model.named_parameters() if ".lora_" in name or "fera.router." in name}
    assert trainable == own and any("fera.router." in name for name in own)


@cases
def test_three_ways_in_are_one_model(case):
    inputs = case.inputs(3)
    outputs = [predict(fill(build(case.model())), inputs).detach() for build in (wrap, inject, add)]
    assert not torch.equal(outputs[0], predict(case.model(), inputs))
    for output in outputs[1:]:
        assert torch.equal(output, outputs[0])


@cases
def test_a_disabled_adapter_is_the_base(case):
    inputs = case.inputs(3)
    model = fill(wrap(case.model()))
    with torch.no_grad():
        base, routed = predict(case.model(), inputs), predict(model, inputs)
        with model.disable_adapter(), fera.trace(model) as routings:
            assert torch.equal(predict(model, inputs), base)
        assert routings == []
        assert torch.equal(predict(model, inputs), routed)
        assert not torch.equal(routed, base)


def test_disabling_through_diffusers(tiny_unet):
    inputs, base = UNET.inputs(2), tiny_unet()
    model = fill(add(tiny_unet()))
    with torch.no_grad():
        routed = predict(model, inputs)
        model.disable_adapters()
        assert torch.equal(predict(model, inputs), predict(base, inputs))
        model.enable_adapters()
        assert torch.equal(predict(model, inputs), routed)


# Several adapters


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
    assert list(find_gate(model).router) == ["ink"] and list(find_gate(model).bands) == ["ink"]


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
        assert torch.equal(alone, predict(routed, inputs))
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
    inputs = UNET.inputs(2)
    model = tiny_unet()
    for seed, name in enumerate(("ink", "neon")):
        model.add_adapter(config(), adapter_name=name)
        fill(model, seed, name)
    with torch.no_grad():
        model.set_adapters(["ink", "neon"], weights=[0.0, 1.0])
        mixed = predict(model, inputs)
        model.set_adapters(["neon"], weights=[1.0])
        torch.testing.assert_close(mixed, predict(model, inputs), rtol=1e-5, atol=1e-6)
        model.set_adapters(["ink"], weights=[0.0])
        torch.testing.assert_close(predict(model, inputs), predict(tiny_unet(), inputs), rtol=1e-5, atol=1e-6)


def test_the_scale_of_a_pipeline_call_reaches_the_experts(tiny_unet):
    inputs = UNET.inputs(2)
    model = fill(add(tiny_unet()))
    with torch.no_grad():
        off = model(**inputs, cross_attention_kwargs={"scale": 0.0}).sample
        torch.testing.assert_close(off, predict(tiny_unet(), inputs), rtol=1e-5, atol=1e-6)
        assert not torch.allclose(predict(model, inputs), off)


# Files


@cases
def test_save_and_load_give_the_same_bits(case, tmp_path):
    inputs = case.inputs(3)
    model = fill(get_peft_model(case.model(), config(num_experts=4, num_bands=5, kappa=0.1, temperature=0.3)))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model(), tmp_path)
    with torch.no_grad():
        assert torch.equal(predict(loaded, inputs), predict(model, inputs))
    assert not any(p.requires_grad for p in loaded.parameters())
    saved, again = model.state_dict(), loaded.state_dict()
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[name], again[name]) for name in saved)


@cases
def test_loading_to_train_on(case, tmp_path):
    fill(wrap(case.model())).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(case.model(), tmp_path, is_trainable=True)
    trainable = {name for name, p in loaded.named_parameters() if p.requires_grad}
    assert any("fera.router." in name for name in trainable) and any(".lora_A." in name for name in trainable)
    step(loaded, case.inputs(2))
    assert all(p.grad.abs().sum() > 0 for p in loaded.parameters() if p.requires_grad)


@cases
def test_what_is_in_a_file(case, tmp_path):
    model = fill(wrap(case.model()))
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    router = {key for key in tensors if ".fera." in key}
    assert router == {
        f"base_model.model.fera.router.{layer}.{kind}" for layer in ("hidden", "output") for kind in ("weight", "bias")
    }
    assert not any("lora" in key.lower() for key in router)
    lora = get_peft_model(case.model(), LoraConfig(r=6, target_modules=ATTENTION))
    assert set(tensors) - router == set(get_peft_model_state_dict(lora))
    assert sum(tensor.numel() for tensor in tensors.values()) == sum(
        p.numel() for p in model.parameters() if p.requires_grad
    )


def test_adapter_names_do_not_reach_the_file(tiny_unet, tmp_path):
    # Names that occur in PEFT's and fera's own keys are the hard ones.
    for name in ("ink", "router", "fera", "hidden", "weight", "lora_A", "to_q"):
        model = fill(get_peft_model(tiny_unet(), config(), adapter_name=name), adapter=name)
        model.save_pretrained(tmp_path / name)
        saved = tmp_path / name / name
        keys = set(load_file(saved / "adapter_model.safetensors"))
        wrap(tiny_unet()).save_pretrained(tmp_path / f"{name}-default")
        assert keys == set(load_file(tmp_path / f"{name}-default" / "adapter_model.safetensors"))
        for other in ("default", name):
            loaded = PeftModel.from_pretrained(tiny_unet(), saved, adapter_name=other)
            assert torch.equal(predict(loaded, UNET.inputs(1)), predict(model, UNET.inputs(1)))


def test_a_second_adapter_from_a_file(tiny_unet, tmp_path):
    inputs = UNET.inputs(2)
    for seed, name in enumerate(("ink", "neon")):
        fill(wrap(tiny_unet()), seed).save_pretrained(tmp_path / name)
    model = PeftModel.from_pretrained(tiny_unet(), tmp_path / "ink", adapter_name="ink")
    with torch.no_grad():
        ink = predict(model, inputs)
        model.load_adapter(tmp_path / "neon", adapter_name="neon")
        assert torch.equal(predict(model, inputs), ink)
        model.set_adapter("neon")
        alone = PeftModel.from_pretrained(tiny_unet(), tmp_path / "neon")
        assert torch.equal(predict(model, inputs), predict(alone, inputs))


def test_a_state_dict_by_hand(tiny_unet):
    model = fill(inject(tiny_unet()))
    state = get_peft_model_state_dict(model)
    assert any(key.startswith("fera.router.") for key in state)
    again = inject(tiny_unet())
    set_peft_model_state_dict(again, state)
    assert torch.equal(predict(again, UNET.inputs(2)), predict(model, UNET.inputs(2)))


def test_low_cpu_mem_usage(tiny_unet, tmp_path):
    model = fill(wrap(tiny_unet()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_unet(), tmp_path, low_cpu_mem_usage=True)
    assert not any(p.is_meta for p in loaded.parameters())
    assert torch.equal(predict(loaded, UNET.inputs(2)), predict(model, UNET.inputs(2)))


def test_the_gate_has_no_weight_of_its_own(tiny_unet):
    # Libraries ask every module for its weight; a gate has no base layer to look it up in.
    gate = find_gate(wrap(tiny_unet()))
    assert gate.weight is None and gate.bias is None


def test_loading_into_a_half_precision_base(tiny_unet, tmp_path):
    model = fill(wrap(tiny_unet()))
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_unet().to(torch.bfloat16), tmp_path)
    saved, again = model.state_dict(), loaded.state_dict()
    for name in saved:
        if ".lora_" in name or "fera.router" in name:
            assert torch.equal(saved[name], again[name]), name
    output = predict(loaded, UNET.inputs(2, dtype=torch.bfloat16))
    assert output.dtype == torch.bfloat16 and output.isfinite().all()


# Copies


@cases
@pytest.mark.parametrize("build", [wrap, inject])
@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(case, build, duplicate):
    inputs = case.inputs(2)
    model = fill(build(case.model()))
    with torch.no_grad():
        expected = predict(model, inputs)
        copied = duplicate(model)
        assert torch.equal(predict(copied, inputs), expected)
        gate, other = find_gate(model), find_gate(copied)
        assert gate is not other
        variants = [m.lora_variant["default"] for m in copied.modules() if isinstance(m, LoraLayer)]
        assert variants and all(variant.gate is other for variant in variants)
        fill(copied, 9)
        changed = predict(copied, inputs)
        assert not torch.equal(changed, expected)
        assert torch.equal(predict(model, inputs), expected)
        # The copy's hooks are its own: taking them away does not touch the original.
        other.remove_hooks()
        with pytest.raises(FeraError, match="outside its denoiser's forward"):
            predict(copied, inputs)
        assert torch.equal(predict(model, inputs), expected)


def test_a_copy_made_within_a_forward_starts_outside_of_it(tiny_unet):
    model = fill(inject(tiny_unet()))
    copies = []
    hook = model.mid_block.register_forward_hook(lambda *_: copies.append(copy.deepcopy(find_gate(model))))
    with torch.no_grad():
        predict(model, UNET.inputs(1))
    hook.remove()
    assert copies and copies[0].gates is None


# And back


@cases
def test_unload_gives_the_base_back(case):
    base = case.model()
    before = anatomy(base)
    model = fill(get_peft_model(base, config()))
    predict(model, case.inputs(2))
    restored = model.unload()
    assert restored is base
    after = anatomy(restored)
    # PEFT freezes a base and leaves it frozen, and its configuration stays with the tuner.
    for part in ("trainable", "configs"):
        before.pop(part), after.pop(part)
    same_anatomy(before | {"trainable": {}, "configs": {}}, after | {"trainable": {}, "configs": {}})
    assert torch.equal(predict(restored, case.inputs(2)), predict(case.model(), case.inputs(2)))


def test_unloaded_and_adapted_again(tiny_unet):
    base = fill(wrap(tiny_unet())).unload()
    if hasattr(base, "peft_config"):
        del base.peft_config
    again = fill(wrap(base), 3)
    fresh = fill(wrap(tiny_unet()), 3)
    assert torch.equal(predict(again, UNET.inputs(2)), predict(fresh, UNET.inputs(2)))


@cases
def test_fera_unload_gives_the_base_back(case):
    base = case.model()
    before = anatomy(base)
    fera.unload(fill(inject_adapter_in_model(config(), base)))
    after = anatomy(base)
    before.pop("trainable"), after.pop("trainable")
    same_anatomy(before | {"trainable": {}}, after | {"trainable": {}})


# Where it is wrapped


class Wrapper(torch.nn.Module):
    """As DDP and FSDP wrap a denoiser: its calls go through."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)


def test_wrapped_denoisers_route_themselves(tiny_unet):
    inputs = UNET.inputs(2)
    model = fill(wrap(tiny_unet()))
    assert torch.equal(predict(Wrapper(model), inputs), predict(model, inputs))
    assert torch.equal(predict(Wrapper(model.get_base_model()), inputs), predict(model, inputs))


@cases
def test_positional_and_keyword_latents_route_alike(case):
    inputs = case.inputs(2)
    model = fill(inject(case.model()))
    by_position = list(inputs.values())
    assert torch.equal(model(*by_position).sample, predict(model, inputs))
    assert torch.equal(model(*by_position, return_dict=False)[0], predict(model, inputs))


def test_conditions_of_inpainting_do_not_steer_the_gate(tiny_unet):
    model = fill(inject(tiny_unet(in_channels=9)))
    inputs = UNET.inputs(2)
    gates = []
    for seed in (1, 2):
        condition = 10 * torch.randn(2, 5, 8, 8, generator=torch.Generator().manual_seed(seed))
        with torch.no_grad(), fera.trace(model) as routings:
            predict(model, inputs | {"sample": torch.cat([inputs["sample"], condition], dim=1)})
        gates.append(routings[0].gates)
    assert torch.equal(*gates)


# Traces


@cases
def test_a_trace_has_an_entry_a_forward(case):
    model = fill(inject(case.model()))
    inputs = case.inputs(3)
    with fera.trace(model) as routings:
        predict(model, inputs)
        predict(model, inputs | {"timestep": torch.tensor([7])})
    predict(model, inputs)
    assert len(routings) == 2
    latent = next(iter(inputs.values()))
    gate = find_gate(model)
    for routing in routings:
        assert routing.adapter == "default"
        assert routing.indicator.shape == (3, 3) and routing.gates.shape == (3, 3)
        assert not routing.gates.requires_grad and not routing.indicator.requires_grad
        assert torch.equal(routing.indicator, gate.bands["default"].indicator(latent))
        assert torch.equal(routing.gates, gate.router["default"](routing.indicator).detach())
    assert torch.equal(routings[0].timestep, inputs["timestep"])
    assert routings[1].timestep == 7


def test_traces_nest_and_end_with_an_exception(tiny_unet):
    model = fill(inject(tiny_unet()))
    with fera.trace(model) as outer:
        predict(model, UNET.inputs(1))
        with pytest.raises(RuntimeError, match="enough"), fera.trace(model) as inner:
            predict(model, UNET.inputs(1))
            raise RuntimeError("enough")
        predict(model, UNET.inputs(1))
    predict(model, UNET.inputs(1))
    assert (len(outer), len(inner)) == (3, 1)


def test_without_a_trace_nothing_is_kept(tiny_unet):
    model = fill(inject(tiny_unet()))
    predict(model, UNET.inputs(1))
    assert find_gate(model).gates is None and find_gate(model)._compiled_gates is None


def test_the_config_of_a_loaded_model_is_a_fera_config(tiny_unet, tmp_path):
    wrap(tiny_unet()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_unet(), tmp_path)
    assert isinstance(loaded.peft_config["default"], FeraConfig)
    assert loaded.peft_config["default"].base_fingerprint["class"] == "UNet2DConditionModel"
