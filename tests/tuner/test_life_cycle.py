"""From a base to a routed model and back: injection, copies, unloading, traces."""

import copy
import pickle

import pytest
import torch
from peft import get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from tuner_cases import CASES, UNET, add, anatomy, config, fill, find_gate, inject, predict, same_anatomy, step, wrap

import fera
from fera import FeraError

cases = pytest.mark.parametrize("case", CASES, ids=repr)


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
        assert torch.equal(routing.indicator, gate.inputs["default"].bands.indicator(latent))
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
