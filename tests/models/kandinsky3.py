"""Kandinsky 3."""

import torch
from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, VQModel
from tiny import make_t5

from models.case import Case
from models.inputs import awake

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_images_per_prompt": 2,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 96,
    "output_type": "latent",
}


def make_pipeline() -> Kandinsky3Pipeline:
    """Latents of 8 x 12."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(0)
    unet = Kandinsky3UNet(
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=3,
        block_out_channels=(16, 32),
        cross_attention_dim=4,
        encoder_hid_dim=64,
    )
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return Kandinsky3Pipeline(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        unet=awake(unet),
        scheduler=DDPMScheduler(),
        movq=movq.eval(),
    )


CASES = [Case("kandinsky3", make_pipeline, CALL, {"prompt": "a green tree"}, component="unet", copies=2)]
