"""Adapters on a base in GGUF, by the nodes that load such: layers of theirs, which form a weight at each use.

They are no package: GGUF_NODES names a checkout (city96's ComfyUI-GGUF), TOOLS the folder with `gguf`. Not part of CI.
"""

import copy
import importlib.util
import os
import sys

import pytest
import torch
from comfyui_cases import in_comfyui, in_diffusers, inputs
from comfyui_engine import Twin, engine
from comfyui_twins.unets import sd15
from peft import LoHaConfig, LoraConfig, OFTConfig, inject_adapter_in_model
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.comfyui.adapter import read_adapter
from fera.comfyui.patching import routed

pytestmark = pytest.mark.gguf_nodes

LAYERS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "conv1", "proj_in", "time_emb_proj"]


@pytest.fixture(scope="module")
def nodes():
    engine()
    sys.path.append(os.environ["TOOLS"])
    folder = os.environ["GGUF_NODES"]
    for name in ("dequant", "ops"):
        spec = importlib.util.spec_from_file_location(f"gguf_nodes.{name}", f"{folder}/{name}.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules.setdefault("gguf_nodes", type(sys)("gguf_nodes")).__path__ = [folder]
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
    return sys.modules["gguf_nodes.ops"]


@pytest.fixture(scope="module")
def twin(nodes):
    """Stable Diffusion 1.5 with its linear layers in 8 bits, and in diffusers what those are."""
    import gguf

    comfy, plain = engine(), sd15()
    settings = copy.deepcopy(plain.model.model_config.unet_config)
    config = comfy.supported_models.SD15(settings)
    config.custom_operations = nodes.GGMLOps
    model = comfy.model_base.BaseModel(config, device="cpu")
    kind = gguf.GGMLQuantizationType.Q8_0
    own = plain.model.diffusion_model.state_dict()
    modules = plain.model.diffusion_model.named_modules()
    linear = {f"{name}.weight" for name, module in modules if isinstance(module, torch.nn.Linear)}
    held = {}
    for name, tensor in own.items():
        if name not in linear or tensor.shape[1] % 32:
            held[name] = tensor
            continue
        packed = torch.from_numpy(gguf.quants.quantize(tensor.numpy(), kind))
        held[name] = nodes.GGMLTensor(packed, tensor_type=kind, tensor_shape=tensor.shape)
        own[name].copy_(nodes.dequantize_tensor(held[name], torch.float32))
    assert sum(type(tensor) is nodes.GGMLTensor for tensor in held.values()) > 20
    missing, unexpected = model.diffusion_model.load_state_dict(held, strict=False)
    assert not missing and not unexpected
    names = comfy.utils.unet_to_diffusers(settings)
    before = plain.denoiser.state_dict()
    plain.denoiser.load_state_dict({name: own[names[name]].reshape(one.shape) for name, one in before.items()})
    return Twin(plain.denoiser, model, plain.latent, plain.predict, plain.context)


SCHEMES = {
    "lora": {"r": 2, "target_modules": LAYERS},
    "loha": {"expert": LoHaConfig(r=2), "target_modules": LAYERS},
    "dora": {"expert": LoraConfig(r=2, use_dora=True), "target_modules": [name for name in LAYERS if name != "conv1"]},
    "oft": {"expert": OFTConfig(r=0, oft_block_size=8), "target_modules": ["to_q", "to_out.0"]},
}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_predictions_are_those_of_diffusers(twin, scheme, tmp_path):
    settings = FeraConfig(**copy.deepcopy(SCHEMES[scheme]))
    denoiser = fill(inject_adapter_in_model(settings, copy.deepcopy(twin.denoiser), "default")).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in sorted(denoiser.named_parameters()):
            if ".fera_experts." in name:
                weight.add_(0.2 * torch.randn(weight.shape, generator=generator))
    fera.save_adapter(denoiser, tmp_path / "ink")
    call = inputs(twin)
    plain = in_comfyui(twin, twin.patcher(), *call)
    torch.testing.assert_close(plain, in_diffusers(twin, twin.denoiser, *call), rtol=1e-3, atol=1e-4)
    drawn = in_comfyui(twin, routed(twin.patcher(), read_adapter(tmp_path / "ink"), 1.0), *call)
    torch.testing.assert_close(drawn, in_diffusers(twin, denoiser, *call), rtol=1e-3, atol=2e-4)
    assert (drawn - plain).abs().max() > 1e-2
