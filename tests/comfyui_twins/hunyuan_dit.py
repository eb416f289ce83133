"""Hunyuan-DiT."""

import torch
from comfyui_engine import Twin, engine
from diffusers.models.embeddings import get_2d_rotary_pos_embed
from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid
from torch import Tensor, nn

from comfyui_twins.by_names import copy_by_names

# It has the second and the third norm of a block the other way round.
_REST = {
    r"(blocks\.\d+\.norm1)\.norm\.(.+)": r"\1.\2",
    r"(blocks\.\d+)\.norm2\.(.+)": r"\1.norm3.\2",
    r"(blocks\.\d+)\.norm3\.(.+)": r"\1.norm2.\2",
    r"(blocks\.\d+\.attn\d)\.norm_([qk])\.(.+)": r"\1.\2_norm.\3",
    r"(blocks\.\d+\.skip_norm\..+)": r"\1",
    r"time_extra_emb\.pooler\.(positional_embedding)": r"pooler.\1",
    r"time_extra_emb\.(style_embedder\.weight)": r"\1",
    "(text_embedding_padding)": r"\1",
}


def hunyuan_dit() -> Twin:
    """Hunyuan-DiT 1.1, which is told sizes; half of its outputs are no noise."""
    from models.hunyuan import make_dit

    denoiser = make_dit(num_layers=4, pooled_projection_dim=1024)
    settings = {
        **{"image_model": "hydit1", "depth": 4, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 4.0},
        **{"text_states_dim": 32, "text_states_dim_t5": 32, "text_len": 5, "text_len_t5": 6, "size_cond": True},
        **{"use_style_cond": True, "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.HunyuanDiT(comfy.supported_models.HunyuanDiT1(settings), device="cpu")
    copy_by_names(denoiser, model, _REST)
    texts = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(3))
    sizes = torch.tensor([[1024.0, 1024.0, 128.0, 128.0, 0.0, 0.0]])
    masks = {"text_embedding_mask": torch.ones(1, 5), "text_embedding_mask_t5": torch.ones(1, 6)}

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        batch = len(latent)
        region = get_resize_crop_region_for_grid((8, 8), 32)
        return denoiser(
            latent,
            (level * 1000).round(),
            encoder_hidden_states=context,
            encoder_hidden_states_t5=texts.repeat(batch, 1, 1),
            image_meta_size=sizes.repeat(batch, 1),
            style=torch.zeros(batch, dtype=torch.long),
            image_rotary_emb=get_2d_rotary_pos_embed(16, region, (8, 8), output_type="pt"),
            **{name: mask.expand(batch, -1).long() for name, mask in masks.items()},
        ).sample.chunk(2, dim=1)[0]

    told = {**masks, "encoder_hidden_states_t5": texts, "image_meta_size": sizes}
    targets = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2", "norm1.linear", "norm_out.linear"]
    targets += ["skip_linear", "proj_out", "timestep_embedder.linear_1", "pos_embed.proj"]
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), told, targets)
