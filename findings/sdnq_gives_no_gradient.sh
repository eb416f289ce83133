#!/usr/bin/env bash
# sdnq 0.2.8 (torch 2.13.0, diffusers 0.42.1): a layer that SDNQ quantized passes no gradient on to its input.
#
# Expected: adapters in a frozen base that is held in few bits learn, as they do on bitsandbytes, torchao and quanto, or it
# is said that they cannot.
#
# What happens, with its default settings through diffusers: the layer's output has no `grad_fn`, although the input asks
# for a gradient. Adapters that lie before such a layer learn nothing of what comes behind it.
#
# Output:
#   uint4: no gradient
#   int8: no gradient
#   float8_e4m3fn: no gradient

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 \
    numpy==2.4.6 sdnq==0.2.8
cd "$folder"
"$folder/venv/bin/python" - 2> /dev/null <<'PY'
import torch
from diffusers import FluxTransformer2DModel, SDNQConfig

FluxTransformer2DModel(
    in_channels=4, num_layers=1, num_single_layers=0, attention_head_dim=64, num_attention_heads=4,
    joint_attention_dim=256, pooled_projection_dim=64, axes_dims_rope=(16, 24, 24),
).save_pretrained("model")
for dtype in ("uint4", "int8", "float8_e4m3fn"):
    config = SDNQConfig(weights_dtype=dtype)
    model = FluxTransformer2DModel.from_pretrained("model", quantization_config=config, torch_dtype=torch.float32)
    output = model.transformer_blocks[0].attn.to_q(torch.randn(3, 256, requires_grad=True))
    print(f"{dtype}: {'a gradient' if output.requires_grad else 'no gradient'}")
    assert not output.requires_grad, "not as the header says"
PY
