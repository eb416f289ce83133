"""Stable Audio and Stable Audio 3."""

from fera.export.comfyui.own import Names, Own

_BLOCK, _OWN_BLOCK = r"transformer_blocks\.(\d+)", r"transformer.layers.\1"
# Of attention that is the difference of two, diffusers has both queries, both keys, and the values.
_DIFFERENTIAL = (0, 2, 4, 1, 3)

NAMES: dict[str, Names] = {
    "StableAudioDiTModel": {
        rf"{_BLOCK}\.attn1\.to_([qkv])": Own(rf"{_OWN_BLOCK}.self_attn.to_qkv", r"\2", "qkv"),
        rf"{_BLOCK}\.attn1\.to_out\.0": rf"{_OWN_BLOCK}.self_attn.to_out",
        rf"{_BLOCK}\.attn2\.to_q": rf"{_OWN_BLOCK}.cross_attn.to_q",
        rf"{_BLOCK}\.attn2\.to_([kv])": Own(rf"{_OWN_BLOCK}.cross_attn.to_kv", r"\2", "kv"),
        rf"{_BLOCK}\.attn2\.to_out\.0": rf"{_OWN_BLOCK}.cross_attn.to_out",
        rf"{_BLOCK}\.ff\.net\.0\.proj": rf"{_OWN_BLOCK}.ff.ff.0.proj",
        rf"{_BLOCK}\.ff\.net\.2": rf"{_OWN_BLOCK}.ff.ff.2",
        r"timestep_proj\.(\d)": r"to_timestep_embed.\1",
        r"global_proj\.(\d)": r"to_global_embed.\1",
        r"cross_attention_proj\.(\d)": r"to_cond_embed.\1",
        r"proj_(in|out)": r"transformer.project_\1",
        r"((?:pre|post)process_conv)": r"\1",
    },
    "StableAudio3DiTModel": {
        rf"{_BLOCK}\.self_attn\.to_qkv": Own(rf"{_OWN_BLOCK}.self_attn.to_qkv", order=_DIFFERENTIAL),
        rf"{_BLOCK}\.ff\.proj_in": rf"{_OWN_BLOCK}.ff.ff.0.proj",
        rf"{_BLOCK}\.ff\.proj_out": rf"{_OWN_BLOCK}.ff.ff.2",
        rf"{_BLOCK}\.(.+)": rf"{_OWN_BLOCK}.\2",
        r"proj_(in|out)": r"transformer.project_\1",
        r"(global_cond_embedder\.\d)": r"transformer.\1",
        r"(to_(?:timestep|cond|global)_embed\.\d|(?:pre|post)process_conv)": r"\1",
    },
}
