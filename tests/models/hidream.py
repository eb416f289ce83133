"""HiDream: pads its tokens to a fixed number, and its feed-forward layers are mixtures of experts."""

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, HiDreamImagePipeline, HiDreamImageTransformer2DModel
from tiny import make_vae
from torch import Tensor

from models.case import Case
from models.inputs import awake, embeddings


def prompt(seed: int, prefix: str = "") -> dict[str, Tensor]:
    """Embeddings of T5, of two layers of Llama, and CLIP's pooled ones."""
    return {
        f"{prefix}prompt_embeds_t5": embeddings(seed, 1, 5, 32),
        f"{prefix}prompt_embeds_llama3": embeddings(seed + 100, 2, 1, 5, 32),
        f"{prefix}pooled_prompt_embeds": embeddings(seed + 200, 1, 32),
    }


CALL = {
    **prompt(0),
    **prompt(1, "negative_"),
    "num_inference_steps": 3,
    "height": 12,
    "width": 16,
    "output_type": "latent",
}


def make_transformer(**overrides: object) -> HiDreamImageTransformer2DModel:
    """For 4-channel latents, text width 32."""
    settings = {
        "patch_size": 2,
        "in_channels": 4,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "caption_channels": [32, 32],
        "text_emb_dim": 32,
        "num_routed_experts": 2,
        "num_activated_experts": 1,
        "axes_dims_rope": (8, 4, 4),
        "max_resolution": (8, 8),
        "llama_layers": [0, 1],
    }
    torch.manual_seed(0)
    return awake(HiDreamImageTransformer2DModel(**settings | overrides))


def make_pipeline(**overrides: object) -> HiDreamImagePipeline:
    """For prompt embeddings; settings are the transformer's."""
    pipe = HiDreamImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        text_encoder_3=None,
        tokenizer_3=None,
        text_encoder_4=None,
        tokenizer_4=None,
        transformer=make_transformer(**overrides),
    )
    pipe.default_sample_size = 8  # it stretches every picture to as many pixels
    return pipe


CASES = [Case("hidream", make_pipeline, CALL, prompt(2), copies=2)]
