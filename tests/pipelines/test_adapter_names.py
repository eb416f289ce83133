"""Adapters of any names side by side: none is taken for another's, or for a part of the base."""

import copy

import pytest
import torch
from adapter_cases import denoiser_of, draw, write_adapter
from peft import LoraConfig, get_peft_model, inject_adapter_in_model
from safetensors.torch import load_file
from tiny import make_unet
from tuner_cases import config, fill, predict, unet_inputs

import fera
from fera import FeraError
from fera.generation.drawing import _adapter_names

pytest_plugins = ("pipeline_fixtures",)

# Parts of other names, of keys of a saved adapter, and of the base.
NAMES = ["default", "style", "lora", "lora_A", "0", "a", "fera", "router", "weight", "1"]


def test_a_plain_lora_that_diffusers_names(pipe, ink, lora):
    fera.load_adapter(pipe, ink)
    inked = draw(pipe)
    fera.unload(pipe)
    pipe.load_lora_weights(lora)
    assert pipe.get_active_adapters() == ["default_0"]
    fera.load_adapter(pipe, ink)
    torch.testing.assert_close(draw(pipe), inked, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("first", "second"), [("style2", "style"), ("default_0", "default"), ("1", "0"), ("ab", "a")])
def test_one_name_begins_with_another(pipe, ink, neon, first, second):
    fera.load_adapter(pipe, ink)
    inked = draw(pipe)
    fera.unload(pipe)
    fera.load_adapter(pipe, neon, adapter_name=first)
    neoned = draw(pipe)
    fera.load_adapter(pipe, ink, adapter_name=second)
    assert torch.equal(draw(pipe), inked)
    fera.load_adapter(pipe, neon, adapter_name=first, hotswap=True)
    fera.load_adapter(pipe, ink, adapter_name=second, hotswap=True)
    assert torch.equal(draw(pipe), inked)
    fera.set_adapters(pipe, first)
    assert torch.equal(draw(pipe), neoned)


@pytest.mark.parametrize("kind", ["sd"], indirect=True)
def test_any_names_together(pipe, ink, neon, tmp_path):
    """Each draws what it draws alone, and is saved whole, whatever the others are called."""
    fera.load_adapter(pipe, ink)
    inked = draw(pipe)
    fera.unload(pipe)
    for name in NAMES:
        fera.load_adapter(pipe, ink if name in NAMES[::2] else neon, adapter_name=name)
    for name in NAMES:
        fera.set_adapters(pipe, name)
        assert torch.equal(draw(pipe), inked) == (name in NAMES[::2]), name
        fera.save_adapter(pipe, tmp_path / name, adapter_name=name)
        original = load_file((ink if name in NAMES[::2] else neon) / "adapter_model.safetensors")
        saved = load_file(tmp_path / name / "adapter_model.safetensors")
        assert saved.keys() == original.keys(), name
        assert all(torch.equal(saved[key], original[key]) for key in original), name


@pytest.mark.parametrize("kind", ["sd"], indirect=True)
def test_saved_whole_beside_a_plain_lora_called_like_a_layer(pipe, ink, tmp_path):
    fera.load_adapter(pipe, ink)
    denoiser_of(pipe).add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False), "0")
    fera.save_adapter(pipe, tmp_path / "again")
    original = load_file(ink / "adapter_model.safetensors")
    assert load_file(tmp_path / "again" / "adapter_model.safetensors").keys() == original.keys()


def test_a_peft_model_loads_them(tmp_path):
    inputs = unet_inputs(2)
    folder = write_adapter("sd", tmp_path / "ink", seed=1)
    expected = predict(fill(inject_adapter_in_model(config(), make_unet()), seed=1), inputs)
    model = get_peft_model(make_unet(), config(), adapter_name="style2")
    model.load_adapter(folder, adapter_name="style")
    model.set_adapter("style")
    torch.testing.assert_close(predict(model, inputs), expected, rtol=0, atol=0)
    model.save_pretrained(tmp_path / "saved", selected_adapters=["style"])
    saved = load_file(tmp_path / "saved" / "style" / "adapter_model.safetensors")
    assert saved.keys() == load_file(folder / "adapter_model.safetensors").keys()


@pytest.mark.parametrize("name", ["train", "keys", "_modules"])
def test_names_that_modules_need_themselves(name, tmp_path, originals):
    pipe = copy.deepcopy(originals["sd"])
    folder, before = write_adapter("sd", tmp_path / "ink"), draw(pipe)
    with pytest.raises(FeraError, match=f"adapter_name cannot be '{name}'"):
        fera.load_adapter(pipe, folder, adapter_name=name)
    assert torch.equal(draw(pipe), before)
    with pytest.raises(FeraError, match="without dots"):
        get_peft_model(make_unet(), config(), adapter_name="a.b")


def test_generate_names_adapters_by_folders_of_any_name():
    assert _adapter_names(["runs/train", "runs/ink/adapter", "other/ink"]) == ["adapter-train", "ink", "ink-2"]
