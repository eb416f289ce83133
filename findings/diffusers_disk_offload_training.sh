#!/usr/bin/env bash
# diffusers 0.42.1 (torch 2.13.0, PEFT 0.21.2): a LoRA in a model that is offloaded to disk in groups learns nothing.
#
# Expected: a frozen base in groups of blocks, on disk or in memory, trains its LoRA as it does without offloading, or
# says that it cannot. With groups offloaded to memory (here from the CPU to the CPU) it trains.
#
# What happens, with offload_to_disk_path: the LoRA lies in its block's group, which is read from the file anew for each
# forward, as it was before the optimizer's step. The loss stays the same, with gradient checkpointing and without, and
# nothing is said.
#
# Output:
#   offloaded to memory: as without offloading
#   offloaded to disk: nothing is learned
#   offloaded to memory, with gradient checkpointing: as without offloading
#   offloaded to disk, with gradient checkpointing: nothing is learned

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
from diffusers.hooks import apply_group_offloading
from diffusers.utils import logging
from peft import LoraConfig

warnings.filterwarnings("ignore")
logging.set_verbosity_error()
CPU = torch.device("cpu")


def make_unet(checkpointing):
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=32,
        attention_head_dim=8, norm_num_groups=8, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    ).requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_q", "to_out.0"], init_lora_weights=False))
    if checkpointing:
        unet.enable_gradient_checkpointing()
    return unet.train()


def losses(unet):
    generator = torch.manual_seed(1)
    latents, text = torch.randn(2, 4, 8, 8, generator=generator), torch.randn(2, 3, 32, generator=generator)
    trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer, found = torch.optim.SGD(trained, 0.5), []
    for _ in range(4):
        loss = unet(latents, 500, text).sample.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    return found


def result(checkpointing, **disk):
    wanted, unet = losses(make_unet(checkpointing)), make_unet(checkpointing)
    apply_group_offloading(
        unet, onload_device=CPU, offload_device=CPU, offload_type="block_level", num_blocks_per_group=1, **disk
    )
    found = losses(unet)
    if all(abs(own - other) < 1e-5 for own, other in zip(found, wanted)):
        return "as without offloading"
    return "nothing is learned" if max(found) - min(found) < 1e-6 else "other losses"


seen = {}
for checkpointing in (False, True):
    for place in ("memory", "disk"):
        with tempfile.TemporaryDirectory() as folder:
            disk = {"offload_to_disk_path": folder} if place == "disk" else {}
            seen[place, checkpointing] = result(checkpointing, **disk)
        title = f"offloaded to {place}{', with gradient checkpointing' if checkpointing else ''}"
        print(f"{title}: {seen[place, checkpointing]}")

for checkpointing in (False, True):
    assert seen["memory", checkpointing] == "as without offloading", "not as the header says"
    assert seen["disk", checkpointing] == "nothing is learned", "not as the header says"
PY
