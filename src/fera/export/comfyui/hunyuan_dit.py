"""Hunyuan-DiT."""

from fera.export.comfyui.own import SWAPPED, Names, Own, two_layers

NAMES: dict[str, Names] = {
    "HunyuanDiT2DModel": {
        r"(blocks\.\d+\.attn1)\.to_([qkv])": Own(r"\1.Wqkv", r"\2", "qkv"),
        r"(blocks\.\d+\.attn2)\.to_q": r"\1.q_proj",
        r"(blocks\.\d+\.attn2)\.to_([kv])": Own(r"\1.kv_proj", r"\2", "kv"),
        r"(blocks\.\d+\.attn\d)\.to_out\.0": r"\1.out_proj",
        r"(blocks\.\d+)\.ff\.net\.0\.proj": r"\1.mlp.fc1",
        r"(blocks\.\d+)\.ff\.net\.2": r"\1.mlp.fc2",
        r"(blocks\.\d+)\.norm1\.linear": r"\1.default_modulation.1",
        r"(blocks\.\d+\.skip_linear)": r"\1",
        r"pos_embed\.proj": "x_embedder.proj",
        **two_layers("text_embedder", "mlp_t5", ("0", "2")),
        **two_layers(r"time_extra_emb\.timestep_embedder", "t_embedder.mlp", ("0", "2")),
        **two_layers(r"time_extra_emb\.extra_embedder", "extra_embedder", ("0", "2")),
        r"time_extra_emb\.pooler\.(.+)": r"pooler.\1",
        r"norm_out\.linear": Own("final_layer.adaLN_modulation.1", order=SWAPPED),
        "proj_out": "final_layer.linear",
    },
}
