"""CogView 3 Plus."""

import torch
from diffusers import CogVideoXDDIMScheduler, CogView3PlusPipeline, CogView3PlusTransformer2DModel
from tiny import make_t5, make_vae

from models.case import Case
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "num_inference_steps": 3,
    "height": 16,
    "width": 32,
    "output_type": "latent",
}


def make_pipeline() -> CogView3PlusPipeline:
    """For 4-channel latents, text width 64; predicts a velocity, its last timestep is noise alone."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(0)
    transformer = CogView3PlusTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        text_embed_dim=64,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    return CogView3PlusPipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        vae=make_vae(),
        transformer=awake(transformer),
        scheduler=CogVideoXDDIMScheduler(
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=4.0,
            timestep_spacing="trailing",
        ),
    )


CASES = [Case("cogview3-plus", make_pipeline, CALL, {"prompt": "a green tree"}, copies=2)]
