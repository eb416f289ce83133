"""Adapters read without PEFT are what PEFT reads."""

import subprocess
import sys

import pytest
import torch
from adapter_cases import add_adapter, denoiser_of, draw, make_pipeline, write_adapter
from rows_cases import by_hand
from safetensors.torch import load_file, save_file

import fera
from fera import FeraError
from fera.comfyui.adapter import read_adapter
from fera.comfyui.patching import with_text

SETTINGS = {
    "default": {},
    "patterns": {"rank_pattern": {"to_q": 3, "attn2.to_k": 1}, "alpha_pattern": {"to_v": 5}},
    "root of the rank": {"use_rslora": True, "rank_pattern": {"to_q": 3}},
    "both read": {"router_input": "log_energies+timestep", "temperature": 0.4, "num_experts": 4, "num_bands": 5},
    "rank mask": {"router": "rank_mask", "router_input": "timestep"},
    "uniform": {"router": "uniform"},
    "released": {"indicator": "released", "kappa": 0.125},
    "convolutions": {"target_modules": ["conv1", "conv_shortcut", "proj_in"]},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_reads_what_peft_reads(tmp_path, settings):
    folder = write_adapter("sd", tmp_path / "ink", **settings)
    adapter = read_adapter(folder)
    pipe = make_pipeline("sd")
    fera.load_adapter(pipe, folder)
    unet = denoiser_of(pipe)
    assert (adapter.name, adapter.denoiser) == ("ink", "UNet2DConditionModel")
    with fera.trace(pipe) as steps:
        draw(pipe)
    for step in steps:
        latent = torch.randn(2, 4, 8, 8)
        level = torch.tensor([0.3, 0.9])
        own = unet.fera.router["default"](unet.fera.inputs["default"](latent, level))
        torch.testing.assert_close(adapter.router(adapter.input(latent, level)), own)
        assert step.gates.shape[1] == adapter.num_experts
    modules = dict(unet.named_modules())
    for path, experts in adapter.layers.items():
        layer = modules[path]
        torch.testing.assert_close(experts.down, layer.lora_A["default"].weight)
        torch.testing.assert_close(experts.up, layer.lora_B["default"].weight * layer.scaling["default"])
    assert len(adapter.layers) == sum(hasattr(module, "lora_A") for module in modules.values())


def test_the_scale_is_that_of_the_formula(tmp_path):
    adapter = read_adapter(write_adapter("sd", tmp_path / "ink", target_modules=["to_q"]))
    pipe = add_adapter(make_pipeline("sd"), target_modules=["to_q"])
    (path, experts), *_ = adapter.layers.items()
    layer = denoiser_of(pipe).get_submodule(path)
    x, gates = torch.randn(3, experts.down.shape[1]), torch.softmax(torch.randn(3, 3), dim=1)
    ranks = (x @ experts.down.T) * gates.repeat_interleave(2, dim=1)
    torch.testing.assert_close(layer.base_layer(x) + ranks @ experts.up.T, by_hand(layer, x, gates))


def test_needs_neither_peft_nor_diffusers(tmp_path):
    folder = write_adapter("sd", tmp_path / "ink")
    script = (
        "import sys\n"
        "from fera.comfyui.nodes import NODES\n"
        "from fera.comfyui.adapter import read_adapter\n"
        f"assert len(read_adapter({str(folder)!r}).layers) > 0 and NODES\n"
        "print(sorted({'peft', 'diffusers', 'accelerate', 'transformers', 'matplotlib', 'rich'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def change(tmp_path, changed):
    folder = write_adapter("sd", tmp_path / "ink")
    tensors = load_file(folder / "adapter_model.safetensors")
    changed(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (lambda tensors: tensors.pop(next(key for key in tensors if "experts_B" in key)), "LoRA of .* is incomplete"),
        (lambda tensors: tensors.update(extra=torch.ones(1)), "holds extra, which is no part"),
        (lambda tensors: tensors.pop(next(key for key in tensors if "router" in key)), "its router does not fit"),
    ],
)
def test_damaged_files(tmp_path, changed, message):
    with pytest.raises(FeraError, match=message):
        read_adapter(change(tmp_path, changed))


def test_other_files(tmp_path):
    save_file({"x": torch.ones(1)}, tmp_path / "lora.safetensors")
    with pytest.raises(FeraError, match="is no FeRA adapter"):
        read_adapter(tmp_path / "lora.safetensors")
    (tmp_path / "short.safetensors").write_bytes(b"\x10\x00")
    with pytest.raises(FeraError, match="not a readable safetensors file"):
        read_adapter(tmp_path / "short.safetensors")
    whole = write_adapter("sd", tmp_path / "whole") / "adapter_model.safetensors"
    whole.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(FeraError, match="not a readable safetensors file"):
        read_adapter(whole)
    with pytest.raises(FeraError, match="strength must be a finite number"):
        with_text(None, read_adapter(write_adapter("sd", tmp_path / "ink")), float("nan"))
    with pytest.raises(FeraError, match="has nothing to route.*fera export"):
        read_adapter(write_adapter("sd", tmp_path / "gradient", router="gradient", lora_alpha=None))
