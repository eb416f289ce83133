"""HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage 2.1, which ComfyUI has as one class.

Source of the names: its `comfy/ldm/hunyuan_video/model.py`, which keeps those of the original code.
"""

from fera.export.comfyui.flux import DOUBLE, SINGLE
from fera.export.comfyui.own import SWAPPED, Names, Own, two_layers

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
_ENDS: Names = {
    r"x_embedder\.proj": "img_in.proj",
    r"norm_out\.linear": Own("final_layer.adaLN_modulation.1", order=SWAPPED),
    r"proj_out": "final_layer.linear",
}

NAMES: dict[str, Names] = {
    "HunyuanVideoTransformer3DModel": {
        **_TEXT,
        **DOUBLE,
        **SINGLE,
        **_ENDS,
        **two_layers(r"time_text_embed\.timestep_embedder", "time_in"),
        **two_layers(r"time_text_embed\.text_embedder", "vector_in"),
        **two_layers(r"time_text_embed\.guidance_embedder", "guidance_in"),
    },
    "HunyuanVideo15Transformer3DModel": {
        **_TEXT,
        **DOUBLE,
        **_ENDS,
        **two_layers(r"time_embed\.timestep_embedder", "time_in"),
        **two_layers(r"time_embed\.timestep_embedder_r", "time_r_in"),
        **two_layers("image_embedder", "vision_in.proj", ("1", "3")),
    },
    "HunyuanImageTransformer2DModel": {
        **_TEXT,
        **DOUBLE,
        **SINGLE,
        **_ENDS,
        **two_layers(r"time_guidance_embed\.timestep_embedder", "time_in"),
        **two_layers(r"time_guidance_embed\.timestep_embedder_r", "time_r_in"),
        **two_layers(r"time_guidance_embed\.guidance_embedder", "guidance_in"),
    },
}
