"""Saving and loading, by PEFT's own methods."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict
from safetensors.torch import load_file
from tuner_cases import ATTENTION, CASES, UNET, config, fill, find_gate, inject, predict, step, wrap

from fera import FeraConfig
from fera.format import peft_key

cases = pytest.mark.parametrize("case", CASES, ids=repr)


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
    lora = get_peft_model(case.model(), LoraConfig(r=6, target_modules=ATTENTION))
    assert {peft_key(key) for key in set(tensors) - router} == set(get_peft_model_state_dict(lora))
    # A tool for plain LoRAs that looks for them finds none: without their gate they are another adapter.
    assert not any("lora" in key.lower() for key in tensors)
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


def test_the_config_of_a_loaded_model_is_a_fera_config(tiny_unet, tmp_path):
    wrap(tiny_unet()).save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_unet(), tmp_path)
    assert isinstance(loaded.peft_config["default"], FeraConfig)
    assert loaded.peft_config["default"].base_fingerprint["class"] == "UNet2DConditionModel"
