"""Mochi."""

from fera.export.comfyui.own import SWAPPED, Names, Own, two_layers

NAMES: dict[str, Names] = {
    "MochiTransformer3DModel": {
        r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])": Own(r"blocks.\1.attn.qkv_x", r"\2", "qkv"),
        r"transformer_blocks\.(\d+)\.attn1\.add_([qkv])_proj": Own(r"blocks.\1.attn.qkv_y", r"\2", "qkv"),
        r"transformer_blocks\.(\d+)\.attn1\.to_out\.0": r"blocks.\1.attn.proj_x",
        r"transformer_blocks\.(\d+)\.attn1\.to_add_out": r"blocks.\1.attn.proj_y",
        r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": Own(r"blocks.\1.mlp_x.w1", order=SWAPPED),
        r"transformer_blocks\.(\d+)\.ff\.net\.2": r"blocks.\1.mlp_x.w2",
        r"transformer_blocks\.(\d+)\.ff_context\.net\.0\.proj": Own(r"blocks.\1.mlp_y.w1", order=SWAPPED),
        r"transformer_blocks\.(\d+)\.ff_context\.net\.2": r"blocks.\1.mlp_y.w2",
        r"transformer_blocks\.(\d+)\.norm1\.linear": r"blocks.\1.mod_x",
        r"transformer_blocks\.(\d+)\.norm1_context\.linear(?:_1)?": r"blocks.\1.mod_y",
        r"patch_embed\.proj": "x_embedder.proj",
        **two_layers(r"time_embed\.timestep_embedder", "t_embedder.mlp", ("0", "2")),
        r"time_embed\.pooler\.(.+)": r"t5_y_embedder.\1",
        r"time_embed\.caption_proj": "t5_yproj",
        r"norm_out\.linear": Own("final_layer.mod", order=SWAPPED),
        "proj_out": "final_layer.linear",
    },
}
