"""CogVideoX and 1.5."""

from fera.export.comfyui.own import Names

NAMES: dict[str, Names] = {
    "CogVideoXTransformer3DModel": {
        r"transformer_blocks\.(\d+)\.attn1\.to_([qkv])": r"blocks.\1.\2",
        r"transformer_blocks\.(\d+)\.attn1\.to_out\.0": r"blocks.\1.attn_out",
        r"transformer_blocks\.(\d+)\.ff\.net\.0\.proj": r"blocks.\1.ff_proj",
        r"transformer_blocks\.(\d+)\.ff\.net\.2": r"blocks.\1.ff_out",
        r"transformer_blocks\.(\d+)\.norm(\d)\.linear": r"blocks.\1.norm\2.linear",
        r"(time|ofs)_embedding\.linear_(\d)": r"\1_embedding_linear_\2",
        r"(patch_embed\.(?:proj|text_proj)|norm_out\.linear|proj_out)": r"\1",
    },
}
