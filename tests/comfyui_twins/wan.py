"""Wan 2.1."""

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn


def wan() -> Twin:
    """Wan 2.1's transformer, on five frames."""
    from models.wan import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "wan2.1", "model_type": "t2v", "patch_size": (1, 2, 2), "in_dim": 16, "out_dim": 16},
        **{"dim": 24, "ffn_dim": 32, "freq_dim": 32, "text_dim": 64, "num_heads": 2, "num_layers": 1},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.WAN21(comfy.supported_models.WAN21_T2V(dict(settings)), device="cpu")
    copy_weights(denoiser, model, {name: _of_wan(name) for name in denoiser.state_dict()})

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        return denoiser(latent, level * 1000, context).sample

    targets = ["to_q", "to_k", "to_v", "to_out.0", "ffn.net.0.proj", "ffn.net.2"]
    return Twin(denoiser, model, (16, 5, 8, 8), predict, (5, 64), targets=targets)


def _of_wan(name: str) -> str:
    """The original name of a weight of Wan's."""
    for old, new in {
        "condition_embedder.time_embedder.linear_1": "time_embedding.0",
        "condition_embedder.time_embedder.linear_2": "time_embedding.2",
        "condition_embedder.text_embedder.linear_1": "text_embedding.0",
        "condition_embedder.text_embedder.linear_2": "text_embedding.2",
        "condition_embedder.time_proj": "time_projection.1",
        ".attn1.": ".self_attn.",
        ".attn2.": ".cross_attn.",
        ".to_q.": ".q.",
        ".to_k.": ".k.",
        ".to_v.": ".v.",
        ".to_out.0.": ".o.",
        ".ffn.net.0.proj.": ".ffn.0.",
        ".ffn.net.2.": ".ffn.2.",
        ".norm2.": ".norm3.",
        ".scale_shift_table": ".modulation",
    }.items():
        name = name.replace(old, new)
    return {"scale_shift_table": "head.modulation"}.get(name, name.replace("proj_out.", "head.head."))
