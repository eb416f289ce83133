#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0, PEFT 0.21.2): fuse_qkv_projections switches a LoRA off without a word.
#
# Expected: fusing the projections of query, key and value changes the speed and not the result, or an error says that a
# LoRA is in the way.
#
# What happens: the fused layer is made from the base's weights alone, because `.weight` of a LoRA layer is its base
# layer's. The LoRA is still listed as active, but its part in these projections is gone, whether it was added before
# the fusing or after. (fuse_lora first, then fuse_qkv_projections, keeps it.)
#
# Output:
#   LoRA alone: active ['default'], changes the output by 0.30791
#   LoRA, then fuse_qkv_projections: active ['default'], changes the output by 0.00000
#   fuse_qkv_projections, then LoRA: active ['default'], changes the output by 0.00000
#   LoRA, fuse_lora, fuse_qkv_projections: active ['default'], changes the output by 0.30791

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q diffusers==0.42.1 peft==0.21.2 transformers==5.23.0 accelerate==1.15.0 \
    safetensors==0.8.0 numpy==2.4.6 pillow==13.0.0
cd "$folder"
export TRANSFORMERS_VERBOSITY=error
"$folder/venv/bin/python" - <<'PY'
import warnings

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging
from peft import LoraConfig

warnings.filterwarnings("ignore")
logging.set_verbosity_error()


def make_unet():
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=8, norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )
    return unet.eval()


def add(unet):
    torch.manual_seed(1)
    # Of self-attention: all three of its projections are fused.
    targets = r".*attn1\.to_(q|k|v)"
    unet.add_adapter(LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


@torch.no_grad()
def call(unet):
    torch.manual_seed(2)
    return unet(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 32)).sample


base = call(make_unet())


def effect(*steps):
    unet = make_unet()
    for step in steps:
        step(unet)
    return float((call(unet) - base).abs().max()), unet.active_adapters()


ways = {
    "LoRA alone": effect(add),
    "LoRA, then fuse_qkv_projections": effect(add, UNet2DConditionModel.fuse_qkv_projections),
    "fuse_qkv_projections, then LoRA": effect(UNet2DConditionModel.fuse_qkv_projections, add),
    "LoRA, fuse_lora, fuse_qkv_projections": effect(
        add, UNet2DConditionModel.fuse_lora, UNet2DConditionModel.fuse_qkv_projections
    ),
}
for way, (size, active) in ways.items():
    print(f"{way}: active {active}, changes the output by {size:.5f}")

alone, after, before, merged = (size for size, _ in ways.values())
assert alone > 0.01 and abs(merged - alone) < 1e-4, "not as the header says"
assert after < 1e-5 and before < 1e-5, "not as the header says"
PY
