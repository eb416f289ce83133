"""Models whose layers ComfyUI calls as diffusers does."""

from typing import Any

import torch
from comfyui_engine import Twin, copy_weights, engine
from torch import Tensor, nn


def _named_alike(denoiser: nn.Module, model: Any) -> None:
    copy_weights(denoiser, model, {name: name for name in denoiser.state_dict()})


def ernie_image() -> Twin:
    """ERNIE-Image's transformer: ComfyUI's latent has 2 x 2 pixels an entry."""
    from models.ernie_image import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "ernie", "hidden_size": 32, "num_attention_heads": 2, "num_layers": 1},
        **{"ffn_hidden_size": 32, "in_channels": 16, "out_channels": 16, "text_in_dim": 8, "rope_axes_dim": (4, 4, 8)},
        "dtype": torch.float32,
    }
    comfy = engine()
    model = comfy.model_base.ErnieImage(comfy.supported_models.ErnieImage(settings), device="cpu")
    _named_alike(denoiser, model)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        told = {"text_bth": context, "text_lens": torch.full((len(context),), context.shape[1])}
        return denoiser(hidden_states=latent, timestep=level * 1000, **told, return_dict=False)[0]

    return Twin(denoiser, model, (16, 8, 8), predict, (5, 8))


def hidream() -> Twin:
    """HiDream's transformer, which reads T5 and layers of Llama."""
    from models.hidream import make_transformer

    denoiser = make_transformer()
    settings = {
        **{"image_model": "hidream", "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 1},
        **{"num_single_layers": 1, "attention_head_dim": 16, "num_attention_heads": 2, "caption_channels": [32, 32]},
        **{"text_emb_dim": 32, "num_routed_experts": 2, "num_activated_experts": 1, "axes_dims_rope": (8, 4, 4)},
        **{"max_resolution": (8, 8), "llama_layers": [0, 1], "dtype": torch.float32},
    }
    comfy = engine()
    model = comfy.model_base.HiDream(comfy.supported_models.HiDream(settings), device="cpu").eval()
    _named_alike(denoiser, model)
    generator = torch.Generator().manual_seed(3)
    pooled, llama = torch.randn(1, 32, generator=generator), torch.randn(1, 2, 5, 32, generator=generator)

    def predict(denoiser: nn.Module, latent: Tensor, level: Tensor, context: Tensor) -> Tensor:
        found = denoiser(
            hidden_states=latent,
            timesteps=level * 1000,
            encoder_hidden_states_t5=context,
            encoder_hidden_states_llama3=llama.movedim(1, 0).expand(-1, len(latent), -1, -1),
            pooled_embeds=pooled.expand(len(latent), -1),
            return_dict=False,
        )
        return -found[0]

    told = {"y": pooled, "encoder_hidden_states_llama3": llama}
    return Twin(denoiser, model, (4, 16, 16), predict, (5, 32), told)
