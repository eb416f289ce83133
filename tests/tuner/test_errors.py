"""What cannot work says so, and leaves the model as it was."""

import json
import warnings

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model, inject_adapter_in_model
from peft.tuners.lora.layer import LoraLayer
from safetensors.torch import load_file, save_file
from tuner_cases import CASES, UNET, anatomy, config, fill, find_gate, predict, same_anatomy

from fera import FeraError

cases = pytest.mark.parametrize("case", CASES, ids=repr)


# Injection


class Boom(RuntimeError):
    pass


FAILURES = {
    "no such target": (config(target_modules=["to_q", "nowhere"]), "match nothing.*: nowhere.*to_q"),
    "no target at all": (config(target_modules=["nowhere"]), "match nothing.*nowhere"),
    "a pattern that matches nothing": (config(target_modules=r".*nowhere"), "(?i)target module"),
    "an unroutable layer": (
        config(target_modules=["to_q", "conv_in", "conv_norm_out"]),
        "GroupNorm.* is not supported",
    ),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("occupied", [None, "fera", "lora"])
def test_a_failed_injection_leaves_the_model_as_it_was(tiny_unet, failure, occupied):
    base = tiny_unet()
    if occupied:
        first = config() if occupied == "fera" else LoraConfig(r=2, target_modules=["to_q", "ff.net.0.proj"])
        inject_adapter_in_model(first, base, "first")
        fill(base, adapter="first")
    before, expected = anatomy(base), predict(base, UNET.inputs(2))
    settings, message = FAILURES[failure]
    with pytest.raises(ValueError, match=message), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's, about a second adapter
        inject_adapter_in_model(settings, base, "second")
    same_anatomy(before, anatomy(base))
    assert torch.equal(predict(base, UNET.inputs(2)), expected)
    inject_adapter_in_model(config(), base, "second")  # and a good one still goes in


def test_a_second_adapter_of_the_same_name_leaves_the_first(tiny_unet):
    unet = inject_adapter_in_model(config(), tiny_unet())
    fill(unet)
    before = predict(unet, UNET.inputs(2))
    with pytest.raises(FeraError, match="has a routed adapter 'default' already: give another adapter_name"):
        get_peft_model(unet, config())
    assert torch.equal(predict(unet, UNET.inputs(2)), before)


def test_a_layer_whose_lora_cannot_be_gated_is_named(tiny_unet):
    base = tiny_unet(num_class_embeds=10)
    before = anatomy(base)
    with pytest.raises(FeraError, match="class_embedding is an? Embedding, whose LoRA layer cannot be routed"):
        get_peft_model(base, config(target_modules=["to_q", "class_embedding"]))
    same_anatomy(before, anatomy(base))


@cases
def test_an_injection_that_fails_halfway_leaves_the_model_as_it_was(case, monkeypatch):
    base = case.model()
    before = anatomy(base)
    made = []

    def fail_late(layer, *args, **kwargs):
        made.append(layer)
        if len(made) == 4:
            raise Boom

    monkeypatch.setattr(LoraLayer, "reset_lora_parameters", fail_late)
    with pytest.raises(Boom):
        get_peft_model(base, config())
    assert len(made) == 4
    same_anatomy(before, anatomy(base))


def test_targets_that_match_nothing_show_what_exists(tiny_unet):
    with pytest.raises(FeraError) as raised:
        get_peft_model(tiny_unet(), config(target_modules=["to_q", "q_proj"]))
    message = str(raised.value)
    assert "UNet2DConditionModel: q_proj." in message
    for name in ("to_q", "to_out.0", "conv1"):
        assert name in message


def test_an_unknown_denoiser_is_refused():
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    before = anatomy(model)
    with pytest.raises(FeraError, match="which argument of Sequential is its latent"):
        get_peft_model(model, config(target_modules=["0"]))
    same_anatomy(before, anatomy(model))


def test_a_second_adapter_for_another_base_leaves_the_first(tiny_unet, tmp_path):
    other = tiny_unet(layers_per_block=2)
    get_peft_model(other, config()).save_pretrained(tmp_path)
    model = fill(get_peft_model(tiny_unet(), config()))
    expected = predict(model, UNET.inputs(1))
    with pytest.raises(FeraError, match="other layers"):
        model.load_adapter(tmp_path, adapter_name="other")
    assert torch.equal(predict(model, UNET.inputs(1)), expected)
    assert list(find_gate(model).router) == ["default"]
    assert list(model.base_model.peft_config) == ["default"]


# Files


@pytest.fixture
def saved(tiny_unet, tmp_path):
    fill(get_peft_model(tiny_unet(), config())).save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def change_tensors(folder, change):
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


def refuse(base, folder, message):
    before = anatomy(base)
    with pytest.raises(FeraError, match=message):
        PeftModel.from_pretrained(base, folder)
    return before


def test_other_weights_are_refused(tiny_unet, saved):
    base = tiny_unet()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    same_anatomy(refuse(base, saved, "another base: same architecture, but the weights differ"), anatomy(base))


def test_another_architecture_is_refused(tiny_unet, tiny_sd3_transformer, saved):
    for base, message in [
        (tiny_sd3_transformer(), "trained on a UNet2DConditionModel, but this base is a SD3Transformer2DModel"),
        (tiny_unet(layers_per_block=2), "other layers"),
    ]:
        same_anatomy(refuse(base, saved, message), anatomy(base))


def test_another_base_can_be_meant(tiny_unet, saved):
    base = tiny_unet()
    with torch.no_grad():
        base.conv_in.weight.mul_(2)
        base.mid_block.attentions[0].proj_in.weight.mul_(-1)
        base.down_blocks[0].resnets[0].conv1.weight.mul_(3)
        for parameter in base.parameters():
            parameter.mul_(1.5)
    refuse(base, saved, "another base")
    change_config(saved, base_fingerprint=None)
    PeftModel.from_pretrained(base, saved)


def test_a_newer_format_is_refused(tiny_unet, saved):
    change_config(saved, format_version=3)
    refuse(tiny_unet(), saved, "format version 3, this fera reads up to 2")


@pytest.mark.parametrize(
    "key",
    [
        "base_model.model.fera.router.hidden.bias",
        "base_model.model.fera.router.output.weight",
        "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.experts_A.weight",
        "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0.experts_B.weight",
    ],
)
def test_a_missing_tensor_is_named(tiny_unet, saved, key):
    change_tensors(saved, lambda tensors: tensors.pop(key))
    refuse(tiny_unet(), saved, key.removeprefix("base_model.model.").replace(".", r"\."))


def test_a_tensor_of_another_shape_is_named(tiny_unet, saved):
    key = "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.experts_A.weight"
    change_tensors(saved, lambda tensors: tensors.update({key: torch.zeros(6, 31)}))
    refuse(tiny_unet(), saved, r"attn1\.to_q\.experts_A\.weight has shape \(6, 31\), .* need \(6, 32\)")


@pytest.mark.parametrize("changed", [{"num_experts": 2}, {"r": 3}, {"num_bands": 4}, {"router_features": 32}])
def test_a_config_that_does_not_fit_the_tensors_is_refused(tiny_unet, saved, changed):
    change_config(saved, **changed)
    refuse(tiny_unet(), saved, "has shape .* its config was changed")


@pytest.mark.parametrize("changed", [{"num_experts": 0}, {"temperature": -1.0}, {"kappa": 2}])
def test_a_config_with_bad_values_is_refused(tiny_unet, saved, changed):
    change_config(saved, **changed)
    ((name, value),) = changed.items()
    refuse(tiny_unet(), saved, f"{name} must .* got {value}")


def test_a_file_of_plain_lora_is_no_fera_adapter(tiny_unet, saved):
    def only_lora(tensors):
        for key in [key for key in tensors if "fera" in key]:
            del tensors[key]

    change_tensors(saved, only_lora)
    refuse(tiny_unet(), saved, r"no tensor fera\.router\.")


# Forwards


@cases
def test_a_call_without_a_latent_is_an_error(case):
    model = fill(get_peft_model(case.model(), config()))
    inputs = case.inputs(1)
    inputs.pop(next(iter(inputs)))
    with pytest.raises(FeraError, match="was called without"):
        model(**inputs)
    assert find_gate(model).gates is None


@cases
def test_a_latent_that_is_no_picture_is_an_error(case):
    model = fill(get_peft_model(case.model(), config()))
    inputs = case.inputs(1)
    name = next(iter(inputs))
    with pytest.raises(FeraError, match=r"shape \(B, C, H, W\)"):
        model(**inputs | {name: inputs[name][0]})
    assert find_gate(model).gates is None


@cases
def test_an_exception_within_a_forward_leaves_no_gate(case):
    model = fill(get_peft_model(case.model(), config()))
    inputs = case.inputs(2)
    with torch.no_grad():
        expected = predict(model, inputs)
    gate = find_gate(model)
    layers = [m for m in model.modules() if isinstance(m, LoraLayer)]
    gates_inside = []

    def fail(*_):
        gates_inside.append(gate.gates)
        raise Boom

    hook = layers[2].register_forward_pre_hook(fail)
    with pytest.raises(Boom):
        predict(model, inputs)
    hook.remove()
    assert gates_inside[0] is not None
    assert gate.gates is None and gate._compiled_gates is None
    with pytest.raises(FeraError, match="outside its denoiser's forward"):
        layers[2](torch.randn(2, 5, layers[2].in_features))
    with torch.no_grad():
        assert torch.equal(predict(model, inputs), expected)


# Merging


@cases
def test_merging_is_refused(case):
    model = fill(get_peft_model(case.model(), config()))
    before, expected = anatomy(model), predict(model, case.inputs(1))
    layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
    for merge in (
        model.merge_adapter,
        model.merge_and_unload,
        lambda: model.merge_and_unload(safe_merge=True),
        layer.merge,
        lambda: layer.merge(safe_merge=True),
        lambda: layer.merge(adapter_names=["default"]),
    ):
        with pytest.raises(FeraError, match="'default' is routed: .* no single merged weight exists"):
            merge()
    same_anatomy(before, anatomy(model))
    assert torch.equal(predict(model, case.inputs(1)), expected)


def test_fusing_through_diffusers_is_refused(tiny_unet):
    model = tiny_unet()
    model.add_adapter(config())
    fill(model)
    before = anatomy(model)
    with pytest.raises(FeraError, match="no adapter can be fused while .* is loaded: a routed adapter"):
        model.fuse_lora()
    same_anatomy(before, anatomy(model))


def test_convolutions_refuse_to_merge_too(tiny_unet):
    model = fill(get_peft_model(tiny_unet(), config(target_modules=["conv1"])))
    layer = next(m for m in model.modules() if isinstance(m, LoraLayer))
    for safe in (True, False):
        with pytest.raises(FeraError, match="is routed"):
            layer.merge(safe_merge=safe)


def test_weighted_combination_is_refused(tiny_unet):
    model = get_peft_model(tiny_unet(), config(), adapter_name="ink")
    model.add_adapter("neon", config())
    with pytest.raises(FeraError, match="cannot be combined into one"):
        model.add_weighted_adapter(["ink", "neon"], [0.5, 0.5], "both")
