"""Sana."""

import torch
from diffusers import AutoencoderDC, DPMSolverMultistepScheduler, SanaPipeline, SanaTransformer2DModel
from torch import Tensor

from models.case import Case
from models.inputs import awake, embeddings, mask


def prompt(seed: int, name: str = "prompt") -> dict[str, Tensor]:
    """Text embeddings and their mask."""
    return {f"{name}_embeds": embeddings(seed, 1, 5, 32), f"{name}_attention_mask": mask(1, 5).long()}


CALL = {
    **prompt(0),
    **prompt(1, "negative_prompt"),
    "negative_prompt": None,
    "num_inference_steps": 3,
    "height": 32,
    "width": 64,
    "use_resolution_binning": False,
    "output_type": "latent",
}


def make_vae() -> AutoencoderDC:
    """With 4-channel latents at a quarter of the pictures' size."""
    torch.manual_seed(1)
    return AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_out_channels=(8, 8, 8),
        decoder_block_out_channels=(8, 8, 8),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((), (), ()),
        decoder_qkv_multiscales=((), (), ()),
    ).eval()


def make_transformer() -> SanaTransformer2DModel:
    """For 4-channel latents, text width 32."""
    torch.manual_seed(0)
    model = SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_attention_heads=2,
        attention_head_dim=16,
        num_cross_attention_heads=2,
        cross_attention_head_dim=16,
        cross_attention_dim=32,
        caption_channels=32,
        sample_size=8,
    )
    return awake(model)


def make_pipeline() -> SanaPipeline:
    """For prompt embeddings."""
    return SanaPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=make_vae(),
        transformer=make_transformer(),
        scheduler=DPMSolverMultistepScheduler(),
    )


CASES = [Case("sana", make_pipeline, CALL, prompt(2), copies=2)]
