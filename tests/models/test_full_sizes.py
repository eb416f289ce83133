"""Denoisers of the sizes that people fine-tune: an adapter goes in, is saved and comes back.

Their weights are a single number seen everywhere, so that they take no memory; nothing is computed with them.
"""

import sys
from pathlib import Path

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel, WanTransformer3DModel
from peft import inject_adapter_in_model
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2]))

import fera
from benchmarks.full_models import SD15, SDXL
from fera import FeraConfig
from fera.tuner.fast.linear import RoutedLinear

SD35_LARGE = {
    "sample_size": 128,
    "num_layers": 38,
    "num_attention_heads": 38,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 2432,
    "pooled_projection_dim": 2048,
    "in_channels": 16,
    "pos_embed_max_size": 192,
    "qk_norm": "rms_norm",
}
MODELS = {
    "sd15": (UNet2DConditionModel, SD15),
    "sdxl": (UNet2DConditionModel, SDXL),
    "sd35-large": (SD3Transformer2DModel, SD35_LARGE),
    "flux": (FluxTransformer2DModel, {"guidance_embeds": True}),
    "wan-14b": (WanTransformer3DModel, {}),
}


def make(name, value):
    cls, settings = MODELS[name]
    with torch.device("meta"):
        model = cls(**settings)
    for module in model.modules():
        for key, parameter in module.named_parameters(recurse=False):
            weight = torch.full((), value, dtype=torch.bfloat16).expand(parameter.shape)
            setattr(module, key, nn.Parameter(weight, requires_grad=False))
    return model


@pytest.mark.parametrize("name", MODELS)
def test_an_adapter_for_a_model_of_full_size(name, tmp_path):
    model = inject_adapter_in_model(FeraConfig(r=1, num_experts=2), make(name, 0.02))
    layers = [module for module in model.modules() if isinstance(module, RoutedLinear)]
    assert len(layers) >= 64
    with torch.no_grad():
        layers[-1].lora_B["default"].weight.fill_(0.5)
    fera.save_adapter(model, tmp_path)
    other = make(name, 0.02)
    fera.load_adapter(other, tmp_path)
    loaded = [module for module in other.modules() if isinstance(module, RoutedLinear)]
    assert len(loaded) == len(layers) and bool((loaded[-1].lora_B["default"].weight == 0.5).all())
    with pytest.raises(fera.FeraError, match="trained on another base"):
        fera.load_adapter(make(name, 0.03), tmp_path)
