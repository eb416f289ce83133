"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1, which ComfyUI has as one class.

Source of the names: its `comfy/ldm/hunyuan_video/model.py`, which keeps those of the original code.
"""

from fera.export.comfyui.own import Names, Own, two_layers

_REFINER = r"context_embedder\.token_refiner\.refiner_blocks\.(\d+)"
_OWN_REFINER = r"txt_in.individual_token_refiner.blocks.\1"

_TEXT: Names = {
    r"context_embedder\.proj_in": "txt_in.input_embedder",
    **two_layers(r"context_embedder\.time_text_embed\.timestep_embedder", "txt_in.t_embedder"),
    **two_layers(r"context_embedder\.time_text_embed\.text_embedder", "txt_in.c_embedder"),
    rf"{_REFINER}\.attn\.to_([qkv])": Own(rf"{_OWN_REFINER}.self_attn.qkv", r"\2", "qkv"),
    rf"{_REFINER}\.attn\.to_out\.0": rf"{_OWN_REFINER}.self_attn.proj",
    rf"{_REFINER}\.ff\.net\.0\.proj": rf"{_OWN_REFINER}.mlp.0",
    rf"{_REFINER}\.ff\.net\.2": rf"{_OWN_REFINER}.mlp.2",
    rf"{_REFINER}\.norm_out\.linear": rf"{_OWN_REFINER}.adaLN_modulation.1",
    r"context_embedder_2\.linear_(\d)": r"byt5_in.fc\1",
}
_DOUBLE: Names = {
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
_SINGLE: Names = {
    r"single_transformer_blocks\.(\d+)\.attn\.to_([qkv])": Own(r"single_blocks.\1.linear1", r"\2", "qkvm"),
    r"single_transformer_blocks\.(\d+)\.proj_mlp": Own(r"single_blocks.\1.linear1", "m", "qkvm"),
    r"single_transformer_blocks\.(\d+)\.proj_out": r"single_blocks.\1.linear2",
    r"single_transformer_blocks\.(\d+)\.norm\.linear": r"single_blocks.\1.modulation.lin",
}
_ENDS: Names = {
    r"x_embedder\.proj": "img_in.proj",
    r"norm_out\.linear": Own("final_layer.adaLN_modulation.1", is_turned=True),
    r"proj_out": "final_layer.linear",
}

NAMES: dict[str, Names] = {
    "HunyuanVideoTransformer3DModel": {
        **_TEXT,
        **_DOUBLE,
        **_SINGLE,
        **_ENDS,
        **two_layers(r"time_text_embed\.timestep_embedder", "time_in"),
        **two_layers(r"time_text_embed\.text_embedder", "vector_in"),
        **two_layers(r"time_text_embed\.guidance_embedder", "guidance_in"),
    },
    "HunyuanVideo15Transformer3DModel": {
        **_TEXT,
        **_DOUBLE,
        **_ENDS,
        **two_layers(r"time_embed\.timestep_embedder", "time_in"),
        **two_layers(r"time_embed\.timestep_embedder_r", "time_r_in"),
        **two_layers("image_embedder", "vision_in.proj", ("1", "3")),
    },
    "HunyuanImageTransformer2DModel": {
        **_TEXT,
        **_DOUBLE,
        **_SINGLE,
        **_ENDS,
        **two_layers(r"time_guidance_embed\.timestep_embedder", "time_in"),
        **two_layers(r"time_guidance_embed\.timestep_embedder_r", "time_r_in"),
        **two_layers(r"time_guidance_embed\.guidance_embedder", "guidance_in"),
    },
}
