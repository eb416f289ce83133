"""Models with FLUX's blocks, of which ComfyUI's own map knows the names in part.

Source of the names: its `comfy/ldm/flux/model.py`, which keeps those of the original code.
"""

from fera.export.comfyui.own import SWAPPED, Names, Own, two_layers

DOUBLE: Names = {
    r"transformer_blocks\.(\d+)\.attn\.to_([qkv])": Own(r"double_blocks.\1.img_attn.qkv", r"\2", "qkv"),
    r"transformer_blocks\.(\d+)\.attn\.add_([qkv])_proj": Own(r"double_blocks.\1.txt_attn.qkv", r"\2", "qkv"),
    r"transformer_blocks\.(\d+)\.attn\.to_out\.0": r"double_blocks.\1.img_attn.proj",
    r"transformer_blocks\.(\d+)\.attn\.to_add_out": r"double_blocks.\1.txt_attn.proj",
    r"transformer_blocks\.(\d+)\.norm1\.linear": r"double_blocks.\1.img_mod.lin",
    r"transformer_blocks\.(\d+)\.norm1_context\.linear": r"double_blocks.\1.txt_mod.lin",
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"double_blocks.\1.img_mlp.0",
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"double_blocks.\1.img_mlp.2",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": r"double_blocks.\1.txt_mlp.0",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2": r"double_blocks.\1.txt_mlp.2",
}
SINGLE: Names = {
    r"single_transformer_blocks\.(\d+)\.attn\.to_([qkv])": Own(r"single_blocks.\1.linear1", r"\2", "qkvm"),
    r"single_transformer_blocks\.(\d+)\.proj_mlp": Own(r"single_blocks.\1.linear1", "m", "qkvm"),
    r"single_transformer_blocks\.(\d+)\.proj_out": r"single_blocks.\1.linear2",
    r"single_transformer_blocks\.(\d+)\.norm\.linear": r"single_blocks.\1.modulation.lin",
}

_FEED_FORWARD: Names = {
    r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": Own(
        r"double_blocks.\1.img_mlp.up_proj", second=r"double_blocks.\1.img_mlp.gate_proj"
    ),
    r"transformer_blocks\.(\d+)\.ff\.net\.2": r"double_blocks.\1.img_mlp.down_proj",
    r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": Own(
        r"double_blocks.\1.txt_mlp.up_proj", second=r"double_blocks.\1.txt_mlp.gate_proj"
    ),
    r"transformer_blocks\.(\d+)\.ff_context\.net\.2": r"double_blocks.\1.txt_mlp.down_proj",
}
# A single block's feed-forward layer has a gate.
_GATED: Names = {
    r"single_transformer_blocks\.(\d+)\.attn\.to_([qkv])": Own(r"single_blocks.\1.linear1", r"\2", "qkvg"),
    r"single_transformer_blocks\.(\d+)\.proj_mlp": Own(r"single_blocks.\1.linear1", "g", "qkvg"),
}

NAMES: dict[str, Names] = {
    "LongCatImageTransformer2DModel": {
        **DOUBLE,
        **SINGLE,
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        **two_layers(r"time_embed\.timestep_embedder", "time_in"),
        r"norm_out\.linear": Own("final_layer.adaLN_modulation.1", order=SWAPPED),
        "proj_out": "final_layer.linear",
    },
    "OvisImageTransformer2DModel": {
        **DOUBLE,
        **SINGLE,
        **_FEED_FORWARD,
        **_GATED,
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        **two_layers("timestep_embedder", "time_in"),
        r"norm_out\.linear": Own("final_layer.adaLN_modulation.1", order=SWAPPED),
        "proj_out": "final_layer.linear",
    },
}
