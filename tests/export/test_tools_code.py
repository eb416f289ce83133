"""Files of `fera export` in other tools' own code: every key has its place, and the weights are those merged.

`make test` runs these apart: the environment variable TOOLS names the folder with the tools.
"""

import copy
import os
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models.flux import make_transformer as make_flux
from models.flux2 import make_transformer as make_flux2
from models.krea2 import make_transformer as make_krea2
from models.qwen_image import make_transformer as make_qwen_image
from models.wan import make_transformer as make_wan
from models.z_image import make_transformer as make_z_image
from peft import inject_adapter_in_model
from safetensors.torch import load_file
from standins import stand_in_for
from tiny import make_unet
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.export.writing import export_lora

GATE = [0.2, 0.3, 0.5]
CONVOLUTIONS = ["to_q", "to_k", "to_out.0", "conv1", "conv_shortcut", "time_emb_proj", "proj_in", "ff.net.0.proj"]


@cache
def tools():
    """Make the tools importable."""
    stand_in_for("torchvision", "torchaudio", "onnxruntime", "onnx", "cv2", "compel")
    sys.path.append(os.environ["TOOLS"])


def sd15():
    return make_unet(cross_attention_dim=768)


def sdxl():
    return make_unet(
        block_out_channels=(32, 64),
        norm_num_groups=32,
        cross_attention_dim=2048,
        layers_per_block=2,
        attention_head_dim=(1, 1),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=56,
    )


def exported(denoiser, folder, tool, **settings):
    """A file for a tool, the denoiser that it was made for, and that with the adapter merged."""
    adapted = inject_adapter_in_model(FeraConfig(r=2, **settings), copy.deepcopy(denoiser), "default")
    fera.save_adapter(fill(adapted).eval(), folder / "style")
    (file,) = export_lora(folder / "style", folder / "style.safetensors", GATE, tool=tool).files
    fera.merge(adapted, gate=GATE)
    return file, {name.replace(".base_layer", ""): tensor for name, tensor in adapted.state_dict().items()}


def changed(denoiser, merged):
    """Names of the weights that the adapter changes."""
    return {name for name, tensor in denoiser.state_dict().items() if not torch.equal(tensor, merged[name])}


def assert_merged(denoiser, before, merged):
    after = denoiser.state_dict()
    assert len(changed(before, merged)) > 2
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, merged[name], rtol=1e-5, atol=1e-6, msg=lambda text, name=name: name + text)


# LyCORIS


@pytest.mark.tools
def test_lycoris(tmp_path):
    """Stable Diffusion in kohya's names; LyCORIS is told their prefix, which is not its own."""
    tools()
    from lycoris.wrapper import LycorisNetwork, create_lycoris_from_weights

    denoiser = sd15()
    file, merged = exported(denoiser, tmp_path, "kohya", target_modules=CONVOLUTIONS)
    prefix, LycorisNetwork.LORA_PREFIX = LycorisNetwork.LORA_PREFIX, "lora_unet"
    try:
        loaded = copy.deepcopy(denoiser)
        network, _ = create_lycoris_from_weights(1.0, str(file), loaded)
    finally:
        LycorisNetwork.LORA_PREFIX = prefix
    assert len(network.loras) == len({key.partition(".")[0] for key in load_file(file)})
    network.merge_to(1.0)
    assert_merged(loaded, denoiser, merged)


# InvokeAI

INVOKEAI = {
    # Where projections of the time are adapted, it takes Stable Diffusion 1 for something else.
    "sd-1": (sd15, "lora_unet_", {"target_modules": [name for name in CONVOLUTIONS if name != "time_emb_proj"]}),
    "sdxl": (sdxl, "lora_unet_", {"target_modules": CONVOLUTIONS}),
    "flux2": (lambda: make_flux2(guidance_embeds=False, timestep_guidance_channels=256), "lora_transformer-", {}),
    "qwen-image": (make_qwen_image, "lora_transformer-", {"target_modules": ["to_q", "add_k_proj", "img_mlp.net.2"]}),
    "wan": (make_wan, "lora_transformer-", {"target_modules": ["to_q", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]}),
    "z-image": (make_z_image, "lora_transformer-", {"target_modules": ["to_q", "to_v", "to_out.0", "w1", "w2"]}),
    "krea-2": (make_krea2, "lora_transformer-", {}),
}


# The layers of FLUX.1's original code, which InvokeAI has, and those of diffusers that lie in each, in their order.
FLUX = {
    "double_blocks.0.img_attn.qkv": [f"transformer_blocks.0.attn.to_{part}" for part in "qkv"],
    "double_blocks.0.txt_attn.qkv": [f"transformer_blocks.0.attn.add_{part}_proj" for part in "qkv"],
    "double_blocks.0.img_attn.proj": ["transformer_blocks.0.attn.to_out.0"],
    "double_blocks.0.txt_attn.proj": ["transformer_blocks.0.attn.to_add_out"],
    "double_blocks.0.img_mlp.0": ["transformer_blocks.0.ff.net.0.proj"],
    "double_blocks.0.txt_mlp.2": ["transformer_blocks.0.ff_context.net.2"],
    "double_blocks.0.img_mod.lin": ["transformer_blocks.0.norm1.linear"],
    "single_blocks.0.modulation.lin": ["single_transformer_blocks.0.norm.linear"],
    "single_blocks.0.linear1": [
        *(f"single_transformer_blocks.0.attn.to_{part}" for part in "qkv"),
        "single_transformer_blocks.0.proj_mlp",
    ],
    "single_blocks.0.linear2": ["single_transformer_blocks.0.proj_out"],
}


@pytest.mark.tools
@pytest.mark.parametrize("tool", ["invokeai", "kohya"])
def test_invokeai_with_flux(tool, tmp_path):
    """In the names of both formats that it reads of it. Of diffusers' it asks for all layers that are one there."""
    tools()
    denoiser = make_flux(guidance_embeds=False)
    targets = [part for parts in FLUX.values() for part in parts]
    file, merged = exported(denoiser, tmp_path, tool, target_modules=targets)
    # By kohya's names it tells FLUX.1 from FLUX.2 by the width of the real models.
    taken_for, patch = in_invokeai(file, "flux" if tool == "kohya" else None)
    assert taken_for == "flux"
    before = denoiser.state_dict()
    assert {f"lora_transformer-{layer}" for layer in FLUX} == set(patch.layers)
    for layer, parts in FLUX.items():
        changes = [merged[f"{part}.weight"] - before[f"{part}.weight"] for part in parts]
        held = patch.layers[f"lora_transformer-{layer}"]
        # Parts that stayed apart it puts where they are in the real model, whose width it has in its code.
        apart = getattr(held, "lora_layers", None)
        for one, change in zip(apart or [held], changes if apart else [torch.cat(changes)], strict=True):
            found = one.get_parameters({"weight": torch.zeros_like(change)}, 1.0)
            torch.testing.assert_close(found["weight"], change, rtol=1e-4, atol=1e-6)


def in_invokeai(file: Path, base: str | None = None):
    """What InvokeAI takes a file for, and the patch that it reads from it, for a base that it is told or takes."""
    tools()
    import invokeai.backend.model_manager.load  # noqa: F401  first, for its modules import each other
    from invokeai.backend.model_manager.configs.factory import ModelConfigFactory
    from invokeai.backend.model_manager.load.model_loaders.lora import LoRALoader
    from invokeai.backend.model_manager.taxonomy import BaseModelType

    config = ModelConfigFactory.from_model_on_disk(file).config
    wanted = config.base if base is None else BaseModelType(base)
    loader = object.__new__(LoRALoader)  # its caches and settings have no part in this
    loader._model_base, loader._torch_dtype = wanted, torch.float32
    patch = loader._load_model(SimpleNamespace(path=str(file), format=config.format, base=wanted))
    return wanted.value, patch


@pytest.mark.tools
@pytest.mark.parametrize("base", INVOKEAI)
def test_invokeai(base, tmp_path):
    tools()
    make, prefix, settings = INVOKEAI[base]
    denoiser = make()
    file, merged = exported(denoiser, tmp_path, "invokeai", **settings)
    taken_for, patch = in_invokeai(file)
    assert taken_for == base
    from invokeai.backend.patches.layer_patcher import LayerPatcher

    loaded = copy.deepcopy(denoiser).eval().requires_grad_(False)
    assert all(key.startswith(prefix) for key in patch.layers)
    with LayerPatcher.apply_smart_model_patches(
        loaded, [(patch, 1.0)], prefix, torch.float32, force_direct_patching=True
    ):
        assert_merged(loaded, denoiser, merged)


# sd-scripts is no package: SD_SCRIPTS names a checkout of it. Not part of CI.


@pytest.mark.sd_scripts
def test_sd_scripts(tmp_path, monkeypatch):
    """Stable Diffusion 1."""
    tools()
    stand_in_for("imagesize", "xformers", "bitsandbytes", "voluptuous", "ftfy")
    monkeypatch.syspath_prepend(os.environ["SD_SCRIPTS"])
    from networks.lora import create_network_from_weights

    denoiser = sd15()
    file, merged = exported(denoiser, tmp_path, "kohya", target_modules=CONVOLUTIONS)
    loaded = copy.deepcopy(denoiser)
    network, tensors = create_network_from_weights(1.0, str(file), None, [], loaded, for_inference=True)
    assert len(network.unet_loras) == len({key.partition(".")[0] for key in tensors})
    network.merge_to([], loaded, tensors, torch.float32, "cpu")
    assert_merged(loaded, denoiser, merged)
