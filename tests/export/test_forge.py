"""Files of `fera export` in Forge's own code: every key has its place, and the weights are those merged.

Forge is no package: FORGE names a checkout of it, beside the other tools (`tools` of the Makefile). Not part of CI.
"""

import copy
import os
import sys
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from models.flux import make_transformer
from peft import inject_adapter_in_model
from safetensors.torch import load_file
from standins import stand_in_for
from tiny import make_unet
from tuner_cases import fill

import fera
from fera import FeraConfig
from fera.export.writing import export_lora

pytestmark = pytest.mark.forge

GATE = [0.2, 0.3, 0.5]
UNET = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32, "channel_mult": [1, 2]},
    **{"num_res_blocks": [1, 1], "transformer_depth": [0, 1], "transformer_depth_output": [0, 0, 1, 1]},
    **{"transformer_depth_middle": 1, "num_head_channels": -1, "use_spatial_transformer": True, "legacy": False},
    **{"use_linear_in_transformer": False, "context_dim": 32, "num_heads": 8, "adm_in_channels": None},
}
FLUX = {"depth": 1, "depth_single_blocks": 1, "hidden_size": 32}
CONVOLUTIONS = ["to_q", "to_k", "to_out.0", "conv1", "conv_shortcut", "time_emb_proj", "proj_in", "ff.net.0.proj"]
ATTENTION = ["to_q", "to_k", "to_v", "add_k_proj", "to_add_out", "proj_mlp", "net.0.proj", "norm1.linear", "proj_out"]


@cache
def code() -> Any:
    """Forge's modules that load LoRAs, and its names."""
    stand_in_for("torchvision", "pytorch_lightning")
    sys.path += [os.environ["FORGE"], os.environ["TOOLS"]]
    arguments, sys.argv = sys.argv, ["forge", "--always-cpu"]
    try:
        import backend.patcher.lora as lora
        import packages_3rdparty.comfyui_lora_collection.utils as utils
    finally:
        sys.argv = arguments
    return SimpleNamespace(lora=lora, utils=utils)


def as_original(tensors, names):
    """Weights by their names in Forge's model."""
    found: dict[str, list] = {}
    for name, target in names.items():
        if name not in tensors:
            continue
        key, span, turn = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
        value = tensors[name] if turn is None else turn(tensors[name])
        found.setdefault(key, []).append((0 if span is None else span[1], value))
    return {
        key: torch.cat([value for _, value in sorted(parts, key=lambda part: part[0])]) for key, parts in found.items()
    }


CASES = {
    "sd15": (lambda: make_unet(block_out_channels=(32, 64), norm_num_groups=32), UNET, "sd15", CONVOLUTIONS),
    "flux": (lambda: make_transformer(guidance_embeds=False), FLUX, "black-forest-labs/flux.1-dev", ATTENTION),
}


@pytest.mark.parametrize("name", CASES)
def test_forge(name, tmp_path):
    make, config, repository, targets = CASES[name]
    denoiser, forge = make(), code()
    adapted = inject_adapter_in_model(FeraConfig(r=2, target_modules=targets), copy.deepcopy(denoiser), "default")
    fera.save_adapter(fill(adapted).eval(), tmp_path / "style")
    (file,) = export_lora(tmp_path / "style", tmp_path / "style.safetensors", GATE, tool="forge").files
    fera.merge(adapted, gate=GATE)
    if name == "flux":
        names = forge.utils.flux_to_diffusers(config, output_prefix="diffusion_model.")
    else:
        names = {key: f"diffusion_model.{to}" for key, to in forge.utils.unet_to_diffusers(config).items()}
    before = as_original(denoiser.state_dict(), names)
    after = as_original({key.replace(".base_layer", ""): held for key, held in adapted.state_dict().items()}, names)
    model = SimpleNamespace(
        state_dict=lambda: before,
        diffusion_model=SimpleNamespace(config=config),
        config=SimpleNamespace(huggingface_repo=repository),
    )
    patches, unmatched = forge.lora.load_lora(load_file(file), forge.lora.model_lora_keys_unet(model, {}))
    assert unmatched == {}
    by_key: dict[str, list] = {}
    for target, patch in patches.items():
        key, span, turn = (*target, None, None)[:3] if isinstance(target, tuple) else (target, None, None)
        by_key.setdefault(key, []).append((1.0, patch, 1.0, span, turn))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert set(by_key) == changed and len(changed) > 4
    for key, own in by_key.items():
        merged = forge.lora.merge_lora_to_weight(own, before[key].clone(), key)
        torch.testing.assert_close(merged, after[key], rtol=1e-4, atol=1e-5, msg=lambda text, key=key: key + text)
