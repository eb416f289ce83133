"""Z-Image: a list of pictures, in the omni pipeline each behind its references."""

import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    ZImageOmniPipeline,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from tiny import make_vae
from transformers import Siglip2ImageProcessor, Siglip2VisionConfig, Siglip2VisionModel

from models.case import Case
from models.inputs import awake, embeddings, picture

CALL = {
    "prompt_embeds": [embeddings(0, 5, 32)],
    "negative_prompt_embeds": [embeddings(1, 5, 32)],
    "num_images_per_prompt": 2,
    "num_inference_steps": 3,
    "height": 16,
    "width": 24,
    "output_type": "latent",
}
OTHER_PROMPT = {"prompt_embeds": [embeddings(2, 5, 32)]}
# Before, between and after a reference and the picture.
OMNI_CALL = CALL | {
    "prompt_embeds": [[embeddings(seed, 5, 32) for seed in (0, 3, 4)]],
    "negative_prompt_embeds": [[embeddings(seed, 5, 32) for seed in (1, 5, 6)]],
    "image": [picture(0, 64, 72)],
}
OTHER_OMNI = {
    "prompt_embeds": [[embeddings(seed, 5, 32) for seed in (2, 3, 4)]],
    "image": [picture(1, 64, 72)],
}


def make_transformer(siglip_feat_dim: int | None = None) -> ZImageTransformer2DModel:
    """For 4-channel latents, text width 32."""
    torch.manual_seed(0)
    model = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 64, 64],
        siglip_feat_dim=siglip_feat_dim,
    )
    return awake(model)


def make_pipeline() -> ZImagePipeline:
    """For prompt embeddings."""
    return ZImagePipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1),
        text_encoder=None,
        tokenizer=None,
        transformer=make_transformer(),
    )


def make_omni_pipeline() -> ZImageOmniPipeline:
    """With reference pictures, also seen by a vision encoder."""
    torch.manual_seed(2)
    settings = Siglip2VisionConfig(
        hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_patches=16, patch_size=16
    )
    return ZImageOmniPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=make_vae(shift_factor=0.1).bfloat16(),  # it encodes references in this precision
        text_encoder=None,
        tokenizer=None,
        transformer=make_transformer(siglip_feat_dim=32),
        siglip=Siglip2VisionModel(settings).eval(),
        siglip_processor=Siglip2ImageProcessor(patch_size=16, max_num_patches=16),
    )


CASES = [
    Case("z-image", make_pipeline, CALL, OTHER_PROMPT, copies=2),
    Case("z-image-omni", make_omni_pipeline, OMNI_CALL, OTHER_OMNI, copies=2),
]
