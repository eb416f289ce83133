#!/usr/bin/env bash
# PEFT 0.21.2 (diffusers 0.42.1, torch 2.13.0, transformers 5.23.0): an adapter's file lacks the layers whose path has
# another adapter's name in it.
#
# Expected: of two LoRA adapters in one model, each is saved with all of its tensors, whatever the other is called.
#
# What happens: get_peft_model_state_dict leaves out every key that has ".NAME." in it for another adapter's NAME, not
# only where the adapter's name stands in a key. Blocks of diffusers' models are numbered, so a UNet with adapters "1"
# and "2" saves "2" without the layers of down_blocks.1 and of attentions.1. Saving says nothing, a later loading warns
# at most, and the loaded adapter draws something else. Next to an adapter "0" nothing at all is left.
#
# Output:
#   adapters 2: adapter 2 has 32 tensors
#   adapters a, 2: adapter 2 has 32 tensors
#   adapters 1, 2: adapter 2 has 16 tensors
#   adapters 0, 2: adapter 2 has 0 tensors
#   adapter 2 changes the output by up to 0.254; saved beside 1 and loaded, it is off by 0.243

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
import tempfile
import warnings

import torch
from diffusers import UNet2DConditionModel
from diffusers.utils import logging
from peft import LoraConfig, get_peft_model_state_dict

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


def add(unet, *names):
    for name in names:
        torch.manual_seed(1)
        unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_out.0"], init_lora_weights=False), name)
    return unet


def count(*names):
    return len(get_peft_model_state_dict(add(make_unet(), *names), adapter_name=names[-1]))


counts = {names: count(*names) for names in [("2",), ("a", "2"), ("1", "2"), ("0", "2")]}
for names, tensors in counts.items():
    print(f"adapters {', '.join(names)}: adapter 2 has {tensors} tensors")

torch.manual_seed(2)
inputs = torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 32)
with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
    unet = add(make_unet(), "1", "2")
    unet.set_adapter("2")
    unet.save_lora_adapter(folder, adapter_name="2")
    loaded = make_unet()
    loaded.load_lora_adapter(folder, prefix=None, weight_name="pytorch_lora_weights.safetensors")
    off = float((loaded(*inputs).sample - unet(*inputs).sample).abs().max())
    effect = float((unet(*inputs).sample - make_unet()(*inputs).sample).abs().max())
print(f"adapter 2 changes the output by up to {effect:.3f}; saved beside 1 and loaded, it is off by {off:.3f}")

assert counts[("2",)] == counts[("a", "2")] == 32, "not as the header says"
assert counts[("1", "2")] == 16 and counts[("0", "2")] == 0 and off > 0.01, "not as the header says"
PY
