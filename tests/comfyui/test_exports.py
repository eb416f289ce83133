"""Plain LoRAs of `fera export` in ComfyUI's own loader: every key has its place, and the weights are those merged."""

import copy

import pytest
import torch
from comfyui_cases import in_comfyui, in_diffusers, inputs
from comfyui_engine import engine
from comfyui_twins import TWINS
from peft import inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.export.writing import export_lora

pytestmark = pytest.mark.comfyui

GATE = [0.2, 0.3, 0.5]


@pytest.mark.parametrize("name", sorted(TWINS))
def test_a_static_lora_is_the_merged_adapter(name, tmp_path):
    comfy, twin = engine(), TWINS[name]()
    settings = {"target_modules": twin.targets} if twin.targets else {}
    denoiser = inject_adapter_in_model(FeraConfig(r=2, **settings), copy.deepcopy(twin.denoiser), "default")
    fera.save_adapter(fill(denoiser).eval(), tmp_path / "style")
    export_lora(tmp_path / "style", tmp_path / "style.safetensors", GATE, tool="comfyui")
    lora = comfy.utils.load_torch_file(str(tmp_path / "style.safetensors"), safe_load=True)
    key_map = comfy.lora.model_lora_keys_unet(twin.model, {})
    routed = comfy.utils.load_torch_file(str(tmp_path / "style" / "adapter_model.safetensors"), safe_load=True)
    assert not comfy.sd.load_lora_for_models(twin.patcher(), None, routed, 1.0, 0.0)[0].patches, "the adapter is none"
    used = {name for name in key_map if any(key.startswith(f"{name}.") for key in lora)}
    assert {key for key in lora if not any(key.startswith(f"{name}.") for name in used)} == set()
    patcher, _ = comfy.sd.load_lora_for_models(twin.patcher(), None, lora, 1.0, 0.0)
    call = inputs(twin)
    patcher.patch_model(torch.device("cpu"))
    try:
        drawn = in_comfyui(twin, patcher, *call)
    finally:
        patcher.unpatch_model(torch.device("cpu"))
    fera.merge(denoiser, gate=GATE)
    torch.testing.assert_close(drawn, in_diffusers(twin, denoiser, *call), rtol=1e-3, atol=1e-3)
    assert (drawn - in_comfyui(twin, twin.patcher(), *call)).abs().max() > 1e-2
