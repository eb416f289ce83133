"""Wan and the models that are built on it, under the names of its original code."""

from fera.export.comfyui.own import Names, two_layers

_WAN: Names = {
    r"(.+)\.attn1\.to_([qkv])": r"\1.self_attn.\2",
    r"(.+)\.attn1\.to_out\.0": r"\1.self_attn.o",
    r"(.+)\.attn2\.to_([qkv])": r"\1.cross_attn.\2",
    r"(.+)\.attn2\.to_out\.0": r"\1.cross_attn.o",
    r"(.+)\.attn2\.add_([kv])_proj": r"\1.cross_attn.\2_img",
    r"(.+)\.ffn\.net\.0\.proj": r"\1.ffn.0",
    r"(.+)\.ffn\.net\.2": r"\1.ffn.2",
    **two_layers(r"condition_embedder\.time_embedder", "time_embedding", ("0", "2")),
    **two_layers(r"condition_embedder\.text_embedder", "text_embedding", ("0", "2")),
    r"condition_embedder\.time_proj": "time_projection.1",
    r"condition_embedder\.image_embedder\.ff\.net\.0\.proj": "img_emb.proj.1",
    r"condition_embedder\.image_embedder\.ff\.net\.2": "img_emb.proj.3",
    "((?:vace_)?patch_embedding)": r"\1",
    r"(vace_blocks\.\d+)\.proj_in": r"\1.before_proj",
    r"(vace_blocks\.\d+)\.proj_out": r"\1.after_proj",
    "proj_out": "head.head",
}

NAMES: dict[str, Names] = {
    "SkyReelsV2Transformer3DModel": _WAN,
    "WanTransformer3DModel": _WAN,
    "WanVACETransformer3DModel": _WAN,
}
