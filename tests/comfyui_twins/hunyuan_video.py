"""HunyuanVideo, whose queries, keys and values are one layer in ComfyUI."""

import re
from typing import Any

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn

WIDTH = 32


def hunyuan_video() -> Twin:
    """HunyuanVideo's transformer, on three frames."""
    from models.hunyuan_video import make_transformer

    denoiser = make_transformer(
        guidance_embeds=False, rope_axes_dim=(4, 4, 8), attention_head_dim=16, num_refiner_layers=2
    )
    settings = {
        **{"image_model": "hunyuan_video", "in_channels": 4, "out_channels": 4, "patch_size": [1, 2, 2]},
        **{"hidden_size": WIDTH, "num_heads": 2, "mlp_ratio": 4.0, "depth": 1, "depth_single_blocks": 1, "theta": 256},
        **{"axes_dim": [4, 4, 8], "qkv_bias": True, "guidance_embed": False, "vec_in_dim": 32, "context_in_dim": 32},
        **{"meanflow": False, "use_cond_type_embedding": False, "vision_in_dim": None, "byt5": False},
        **{"meanflow_sum": False, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.HunyuanVideo(comfy.supported_models.HunyuanVideo(settings), device="cpu")
    copy_weights(denoiser, model, {name: _name(name, len(held)) for name, held in denoiser.state_dict().items()})
    pooled = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(
            hidden_states=latent,
            timestep=level * 1000,
            encoder_hidden_states=context,
            encoder_attention_mask=torch.ones(context.shape[:2], dtype=torch.long),
            pooled_projections=pooled.expand(len(latent), -1),
        ).sample

    targets = [
        "to_q",
        "to_k",
        "to_v",
        "to_out.0",
        "add_q_proj",
        "add_v_proj",
        "to_add_out",
        "proj_mlp",
        "proj_out",
        "x_embedder.proj",
    ]
    targets += ["ff.net.0.proj", "ff_context.net.2", "norm1.linear"]
    return Twin(denoiser, model, (4, 3, 8, 8), predict, (5, 32), {"y": pooled}, targets)


def _name(name: str, length: int) -> Any:
    for old, new in {
        r"^x_embedder\.": "img_in.",
        r"^context_embedder\.proj_in\.": "txt_in.input_embedder.",
        r"^context_embedder\.time_text_embed\.timestep_embedder\.": "txt_in.t_embedder.",
        r"^context_embedder\.time_text_embed\.text_embedder\.": "txt_in.c_embedder.",
        r"^context_embedder\.token_refiner\.refiner_blocks\.": "txt_in.individual_token_refiner.blocks.",
        r"^time_text_embed\.timestep_embedder\.": "time_in.",
        r"^time_text_embed\.text_embedder\.": "vector_in.",
        r"\.linear_1\.": ".in_layer.",
        r"\.linear_2\.": ".out_layer.",
        r"^norm_out\.linear\.": "final_layer.adaLN_modulation.1.",
        r"^proj_out\.": "final_layer.linear.",
        r"(blocks\.\d+)\.norm_out\.linear\.": r"\1.adaLN_modulation.1.",
        r"^(txt_in.*)\.attn\.to_out\.0\.": r"\1.self_attn.proj.",
        r"^(txt_in.*)\.ff\.net\.0\.proj\.": r"\1.mlp.0.",
        r"^(txt_in.*)\.ff\.net\.2\.": r"\1.mlp.2.",
        r"^transformer_blocks\.": "double_blocks.",
        r"^single_transformer_blocks\.": "single_blocks.",
        r"^(single.*)\.norm\.linear\.": r"\1.modulation.lin.",
        r"^(single.*)\.attn\.norm_q\.": r"\1.norm.query_norm.",
        r"^(single.*)\.attn\.norm_k\.": r"\1.norm.key_norm.",
        r"^(single.*)\.proj_out\.": r"\1.linear2.",
        r"^(double.*)\.norm1\.linear\.": r"\1.img_mod.lin.",
        r"^(double.*)\.norm1_context\.linear\.": r"\1.txt_mod.lin.",
        r"\.attn\.norm_q\.": ".img_attn.norm.query_norm.",
        r"\.attn\.norm_k\.": ".img_attn.norm.key_norm.",
        r"\.attn\.norm_added_q\.": ".txt_attn.norm.query_norm.",
        r"\.attn\.norm_added_k\.": ".txt_attn.norm.key_norm.",
        r"\.attn\.to_out\.0\.": ".img_attn.proj.",
        r"\.attn\.to_add_out\.": ".txt_attn.proj.",
        r"\.ff\.net\.0\.proj\.": ".img_mlp.0.",
        r"\.ff\.net\.2\.": ".img_mlp.2.",
        r"\.ff_context\.net\.0\.proj\.": ".txt_mlp.0.",
        r"\.ff_context\.net\.2\.": ".txt_mlp.2.",
    }.items():
        name = re.sub(old, new, name)
    if name.startswith("final_layer.adaLN"):
        return name, None, lambda held: torch.cat(held.chunk(2)[::-1])  # scale and shift
    for pattern, fused in {
        r"^(txt_in.*)\.attn\.to_([qkv])\.": r"\1.self_attn.qkv.",
        r"^(single.*)\.attn\.to_([qkv])\.": r"\1.linear1.",
        r"^(single.*)\.proj_(m)lp\.": r"\1.linear1.",
        r"^(double.*)\.attn\.to_([qkv])\.": r"\1.img_attn.qkv.",
        r"^(double.*)\.attn\.add_([qkv])_proj\.": r"\1.txt_attn.qkv.",
    }.items():
        if found := re.match(pattern, name):
            return re.sub(pattern, fused, name), (0, "qkvm".index(found[2]) * WIDTH, length), None
    return name
