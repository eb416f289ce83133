"""Latte: frames behind the channels."""

import torch
from diffusers import DDIMScheduler, LattePipeline, LatteTransformer3DModel
from tiny import make_t5, make_vae

from models.case import Case, frames_as_channels

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "clean_caption": False,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 16,
    "width": 24,
    "video_length": 3,
    "output_type": "latent",
}


def make_pipeline() -> LattePipeline:
    """Text to video; the transformer's output holds a variance too."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(0)
    transformer = LatteTransformer3DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=3,
        caption_channels=64,
        in_channels=4,
        cross_attention_dim=24,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
        video_length=3,
    )
    return LattePipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        transformer=transformer.eval(),
        scheduler=DDIMScheduler(),
    )


CASES = [Case("latte", make_pipeline, CALL, {"prompt": "a green tree"}, frames_as_channels, copies=2)]
