"""Experts of other schemes than LoRA: PEFT's own layers, mixed by the gate."""

import copy
from pathlib import Path

import pytest
import torch
from peft import (
    BOFTConfig,
    IA3Config,
    LoHaConfig,
    LoKrConfig,
    LoraConfig,
    OFTConfig,
    PeftModel,
    VeraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from tiny import make_unet
from tuner_cases import ATTENTION, SD3, UNET, adapter_gradients, fill, predict, sample_of, step

import fera
from fera import FeraConfig, FeraError
from fera.tuner import schemes
from fera.tuner.mixture import ExpertMixture
from fera.tuner.model import remove_adapters

SCHEMES = {
    "dora": lambda: LoraConfig(use_dora=True, r=2),
    "loha": lambda: LoHaConfig(r=2),
    "lokr": lambda: LoKrConfig(r=2),
    "oft": lambda: OFTConfig(oft_block_size=4),
    "boft": lambda: BOFTConfig(boft_block_size=4),
    "ia3": lambda: IA3Config(feedforward_modules=[]),
    "vera": lambda: VeraConfig(r=8, save_projection=False),
}
pytestmark = pytest.mark.filterwarnings("ignore:Specified to not save vera_A")


@pytest.fixture(params=SCHEMES)
def scheme(request):
    return SCHEMES[request.param]()


def routed(scheme, model=None, adapter="default", seed=0, **settings):
    """A denoiser with experts of a scheme whose every weight counts."""
    model = make_unet() if model is None else model
    torch.manual_seed(1)
    inject_adapter_in_model(FeraConfig(expert=scheme, target_modules=ATTENTION, **settings), model, adapter)
    return shake(model, seed, adapter)


def shake(model, seed=0, adapter="default"):
    generator = torch.Generator().manual_seed(seed)
    fill(model, seed, adapter)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if f".fera_experts.{adapter}." in name:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def test_a_fresh_adapter_leaves_the_output_as_it_is_bit_for_bit(scheme):
    model, inputs = make_unet(), UNET.inputs(2)
    before = predict(model, inputs)
    inject_adapter_in_model(FeraConfig(expert=scheme, target_modules=ATTENTION), model)
    assert torch.equal(predict(model, inputs), before)


def test_the_output_is_the_gated_sum_of_what_each_expert_gives_alone(scheme):
    """The oracle: the stock layer of PEFT, holding one expert's weights."""
    model, inputs = routed(scheme), UNET.inputs(3)
    name, layer = next((n, m) for n, m in model.named_modules() if isinstance(m, ExpertMixture))
    seen = {}
    layer.register_forward_hook(lambda module, args, output: seen.update(x=args[0], y=output))
    with fera.trace(model) as steps:
        predict(model, inputs)
    outputs = []
    for expert in layer.fera_experts["default"]:
        stock = torch.nn.Module()
        stock.layer = copy.deepcopy(layer.get_base_layer())
        alone = copy.deepcopy(scheme)
        alone.target_modules = ["layer"]
        get_peft_model(stock, alone)
        stock.layer.load_state_dict(expert.state_dict(), strict=False)
        outputs.append(stock.layer(seen["x"]))
    gates = steps[0].gates
    expected = sum(gates[:, e].view(-1, 1, 1) * output for e, output in enumerate(outputs))
    torch.testing.assert_close(seen["y"], expected, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(seen["y"], layer.get_base_layer()(seen["x"]), atol=1e-3)


@pytest.mark.parametrize("name", [name for name in SCHEMES if name != "vera"])
def test_one_expert_equals_the_stock_scheme(name):
    """But for VeRA, whose projections PEFT cuts out of one for all layers; here each layer has its own."""
    scheme = SCHEMES[name]()
    model, inputs = routed(scheme, num_experts=1), UNET.inputs(2)
    stock = make_unet()
    alone = copy.deepcopy(scheme)
    alone.target_modules = ATTENTION
    inject_adapter_in_model(alone, stock, "default")
    for name, module in model.named_modules():
        if isinstance(module, ExpertMixture):
            weights = module.fera_experts["default"][0].state_dict()
            stock.get_submodule(name).load_state_dict(weights, strict=False)
    torch.testing.assert_close(predict(model, inputs), predict(stock, inputs), rtol=1e-4, atol=1e-5)


def test_a_batch_equals_its_samples_one_by_one(scheme):
    model, inputs = routed(scheme), UNET.inputs(3)
    together = predict(model, inputs)
    alone = torch.cat([predict(model, sample_of(inputs, index)) for index in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_experts_and_router_get_gradients_and_nothing_else_does(scheme):
    model = routed(scheme).train()
    base = {name: p.clone() for name, p in model.named_parameters() if not p.requires_grad}
    step(model, UNET.inputs(2))
    gradients = adapter_gradients(model)
    assert any("fera.router" in name for name in gradients)
    for name, gradient in gradients.items():
        assert ".fera_experts." in name or "fera.router" in name
        assert gradient.isfinite().all()
    assert all(gradient.any() for name, gradient in gradients.items() if "router.default.output" in name)
    for e in range(3):
        own = [gradient for name, gradient in gradients.items() if f".fera_experts.default.{e}." in name]
        assert own and any(gradient.any() for gradient in own)
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or name in gradients
        assert name not in base or torch.equal(parameter, base[name])


def test_saved_and_loaded_it_gives_the_same_bits(scheme, tmp_path):
    model, inputs = routed(scheme), UNET.inputs(2)
    expected = predict(model, inputs)
    fera.save_adapter(model, tmp_path)
    other = make_unet()
    fera.load_adapter(other, tmp_path, adapter_name="ink")
    assert torch.equal(predict(other, inputs), expected)
    peft_model = PeftModel.from_pretrained(make_unet(), tmp_path)
    assert torch.equal(peft_model(**inputs).sample, expected)


def test_a_file_holds_no_more_than_what_trains(scheme, tmp_path):
    from safetensors.torch import load_file

    model = routed(scheme)
    fera.save_adapter(model, tmp_path)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(tensor.numel() for tensor in stored.values()) == trained
    assert not any("base_layer" in key for key in stored)


def test_a_damaged_file_is_refused(scheme, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    fera.save_adapter(routed(scheme), tmp_path)
    path = tmp_path / "adapter_model.safetensors"
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}
    lost = sorted(key for key in tensors if "fera_experts" in key)[0]
    del tensors[lost]
    save_file(tensors, path)
    unet = make_unet()
    with pytest.raises(FeraError, match="has no tensor"):
        fera.load_adapter(unet, tmp_path)
    assert not any(isinstance(module, ExpertMixture) for module in unet.modules())


def test_disabled_and_unloaded_it_is_the_base(scheme):
    inputs = UNET.inputs(2)
    expected = predict(make_unet(), inputs)
    wrapped = get_peft_model(make_unet(), FeraConfig(expert=scheme, target_modules=ATTENTION))
    shake(wrapped)
    assert not torch.equal(wrapped(**inputs).sample, expected)
    with wrapped.disable_adapter():
        assert torch.equal(wrapped(**inputs).sample, expected)
    assert not torch.equal(wrapped(**inputs).sample, expected)
    base = wrapped.unload()
    assert torch.equal(predict(base, inputs), expected)
    assert [name for name, _ in base.named_parameters()] == [name for name, _ in make_unet().named_parameters()]


def test_weights_scale_the_difference_from_the_base_in_each_layer():
    model, inputs = routed(OFTConfig(oft_block_size=4)), UNET.inputs(2)
    layer = next(module for module in model.modules() if isinstance(module, ExpertMixture))
    seen = []
    layer.register_forward_hook(lambda module, args, output: seen.append((args[0], output)))
    for weight in (1.0, 0.5, 0.0):
        fera.set_adapters(model, "default", weights=weight)
        predict(model, inputs)
    base = layer.get_base_layer()
    full = seen[0][1] - base(seen[0][0])
    half = seen[1][1] - base(seen[1][0])
    torch.testing.assert_close(half, full / 2, rtol=1e-3, atol=1e-5)
    assert torch.equal(seen[2][1], base(seen[2][0]))


def test_several_schemes_on_one_denoiser(scheme):
    """A mixture beside routed LoRA, in either order: each alone gives what it gives by itself."""
    inputs = UNET.inputs(2)
    alone = {}
    alone["mix"] = predict(routed(copy.deepcopy(scheme), adapter="mix"), inputs)
    lora = make_unet()
    inject_adapter_in_model(FeraConfig(r=2, target_modules=ATTENTION), lora, "lora")
    alone["lora"] = predict(shake(lora, adapter="lora"), inputs)
    for first in ("mix", "lora"):
        model = make_unet()
        for name in (first, "lora" if first == "mix" else "mix"):
            config = FeraConfig(r=2, target_modules=ATTENTION)
            if name == "mix":
                config = FeraConfig(expert=copy.deepcopy(scheme), target_modules=ATTENTION)
            torch.manual_seed(1)
            inject_adapter_in_model(config, model, name)
            shake(model, adapter=name)
        for name in ("lora", "mix", "lora"):
            fera.set_adapters(model, name)
            torch.testing.assert_close(predict(model, inputs), alone[name], rtol=1e-4, atol=1e-5)
        fera.set_adapters(model, ["lora", "mix"])
        both = predict(model, inputs)
        assert not torch.allclose(both, alone["mix"], atol=1e-4) and not torch.allclose(both, alone["lora"], atol=1e-4)
        fera.unload(model, "lora")
        torch.testing.assert_close(predict(model, inputs), alone["mix"], rtol=1e-4, atol=1e-5)
        fera.unload(model)
        assert torch.equal(predict(model, inputs), predict(make_unet(), inputs))


def test_convolutions_can_be_mixed():
    for scheme in (
        *(LoHaConfig(r=2), LoKrConfig(r=2), LoraConfig(use_dora=True, r=2)),
        *(BOFTConfig(boft_block_size=4), IA3Config(feedforward_modules=[])),
    ):
        model, inputs = make_unet(), UNET.inputs(2)
        before = predict(model, inputs)
        inject_adapter_in_model(FeraConfig(expert=scheme, target_modules=["conv1", "conv2"]), model)
        assert torch.equal(predict(model, inputs), before)
        shake(model)
        alone = torch.cat([predict(model, sample_of(inputs, index)) for index in range(2)])
        torch.testing.assert_close(predict(model, inputs), alone, rtol=1e-4, atol=1e-5)


def test_gradient_checkpointing_gives_the_same_gradients(scheme):
    model = routed(scheme).train()
    step(model, UNET.inputs(2))
    expected = adapter_gradients(model)
    model.enable_gradient_checkpointing()
    step(model, UNET.inputs(2))
    for name, gradient in adapter_gradients(model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)


def test_a_transformer_takes_them_too():
    for scheme in (LoHaConfig(r=2), OFTConfig(oft_block_size=4)):
        model, inputs = routed(scheme, model=SD3.model()), SD3.inputs(2)
        adapted = predict(model, inputs)
        assert adapted.isfinite().all() and not torch.allclose(adapted, predict(SD3.model(), inputs))
        remove_adapters(model, ["default"])
        torch.testing.assert_close(predict(model, inputs), predict(SD3.model(), inputs))


def test_a_copy_is_independent_and_equal():
    model, inputs = routed(LoKrConfig(r=2)), UNET.inputs(2)
    twin = copy.deepcopy(model)
    assert torch.equal(predict(twin, inputs), predict(model, inputs))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert predict(twin, inputs).abs().sum() > 0


@pytest.mark.parametrize(
    ("expert", "message"),
    [
        (LoraConfig(r=2), "plain LoRA.*leave `expert` out"),
        (LoHaConfig(target_modules=["to_q"]), "expert sets target_modules; set it in FeraConfig"),
        ({"r": 4}, "expert needs peft_type, one of LORA"),
        ({"peft_type": "XLORA"}, "expert needs peft_type.*got 'XLORA'"),
        ({"peft_type": "loha", "rank": 4}, "LoHaConfig does not know: rank"),
        ("loha", "must be a PEFT config or a dict of one, got a str"),
    ],
)
def test_experts_that_cannot_be_mixed(expert, message):
    with pytest.raises(FeraError, match=message):
        FeraConfig(expert=expert, target_modules=["to_q"])


def test_the_config_that_is_given_stays_as_it_is():
    given = VeraConfig(r=8, save_projection=True)
    config = FeraConfig(expert=given)
    assert given.save_projection and not config.expert.save_projection


def test_settings_of_lora_beside_another_scheme_are_an_error():
    with pytest.raises(FeraError, match="r=8 is a setting of LoRA.*set it there"):
        FeraConfig(r=8, expert=LoHaConfig(r=2))


def test_a_scheme_that_does_not_fit_a_layer_names_it_and_leaves_the_denoiser_as_it_was():
    model = make_unet()
    with pytest.raises(FeraError, match=r"conv1: VERA experts cannot adapt a Conv2d.*Leave it out"):
        inject_adapter_in_model(FeraConfig(expert=VeraConfig(r=8), target_modules=["conv1"]), model)
    assert [name for name, _ in model.named_modules()] == [name for name, _ in make_unet().named_modules()]


def test_a_layer_of_peft_that_does_not_start_at_the_base_is_refused():
    with pytest.raises(FeraError, match="OFT experts cannot adapt a Conv2d: .*a fresh one is not the base"):
        inject_adapter_in_model(FeraConfig(expert=OFTConfig(oft_block_size=4), target_modules=["conv1"]), make_unet())
    model, inputs = make_unet(), UNET.inputs(2)
    before = predict(model, inputs)
    inject_adapter_in_model(FeraConfig(expert=OFTConfig(oft_block_size=4), target_modules=["conv_shortcut"]), model)
    assert torch.equal(predict(model, inputs), before)


def test_the_documentation_shows_what_is_mixed_here():
    page = (Path(__file__).parents[2] / "docs" / "schemes.md").read_text(encoding="utf-8")
    assert schemes.table() in page
    assert set(schemes.SCHEMES) == {make().peft_type.value for make in SCHEMES.values()}


def test_merging_is_refused():
    wrapped = get_peft_model(make_unet(), FeraConfig(expert=LoHaConfig(r=2), target_modules=ATTENTION))
    with pytest.raises(FeraError, match="routed"):
        wrapped.merge_and_unload()
