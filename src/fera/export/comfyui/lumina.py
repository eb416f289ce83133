"""Lumina-Image 2, whose heads are grouped: keys and values are narrower than queries."""

from fera.export.comfyui.own import Names, Own, two_layers

NAMES: dict[str, Names] = {
    "Lumina2Transformer2DModel": {
        r"(.+)\.attn\.to_([qkv])": Own(r"\1.attention.qkv", r"\2", "qkv", is_grouped=True),
        r"(.+)\.attn\.to_out\.0": r"\1.attention.out",
        r"(.+)\.feed_forward\.linear_(\d)": r"\1.feed_forward.w\2",
        r"(.+)\.norm1\.linear": r"\1.adaLN_modulation.1",
        **two_layers(r"time_caption_embed\.timestep_embedder", "t_embedder.mlp", ("0", "2")),
        r"time_caption_embed\.caption_embedder\.(.+)": r"cap_embedder.\1",
        **two_layers("norm_out", "final_layer", ("adaLN_modulation.1", "linear")),
        "(x_embedder)": r"\1",
    },
}
