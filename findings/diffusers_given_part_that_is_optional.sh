#!/usr/bin/env bash
# diffusers 0.42.1: `DiffusionPipeline.from_pretrained(folder, transformer=mine)` drops `mine` where the pipeline's class
# lists that part as optional, and loads the folder's instead.
#
# Expected: the part that was given, as `WanPipeline.from_pretrained` takes it, or an error.
#
# What happens with a folder of Wan: the pipeline comes with the folder's transformer, and not a word is said. Whoever
# passes a denoiser of one file this way draws with another model.
#
# Output:
#   WanPipeline: the given transformer
#   DiffusionPipeline: the folder's transformer

set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q torch==2.13.0
"$folder/venv/bin/pip" install -q diffusers==0.42.1 transformers==5.23.0 accelerate==1.15.0 safetensors==0.8.0 \
    numpy==2.4.6 ftfy==6.3.1
cd "$folder"
"$folder/venv/bin/python" - 2> /dev/null <<'PY'
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel


def make():
    return WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=4, out_channels=4, text_dim=8, freq_dim=8,
        ffn_dim=8, num_layers=1,
    )


parts = {"tokenizer": None, "text_encoder": None, "vae": None}
WanPipeline(**parts, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=make()).save_pretrained("base")
given = make()
found = {}
for cls in (WanPipeline, DiffusionPipeline):
    pipe = cls.from_pretrained("base", transformer=given, **parts)
    found[cls.__name__] = pipe.transformer is given
    whose = "given" if found[cls.__name__] else "folder's"
    print(f"{cls.__name__}: the {whose} transformer")
assert found == {"WanPipeline": True, "DiffusionPipeline": False}, "not as the header says"
PY
