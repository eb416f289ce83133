"""Kandinsky 2.2: a UNet whose output holds a variance too."""

import torch
from diffusers import DDIMScheduler, KandinskyV22InpaintPipeline, VQModel
from tiny import make_unet

from models.case import Case
from models.inputs import embeddings, picture

CALL = {
    "image_embeds": embeddings(0, 1, 32),
    "negative_image_embeds": embeddings(1, 1, 32),
    "num_images_per_prompt": 2,
    "num_inference_steps": 3,
    "height": 64,
    "width": 64,
    "image": picture(0, 64, 64),
    "mask_image": picture(1, 64, 64, mode="L"),
    "output_type": "latent",
}


def make_inpaint_pipeline() -> KandinskyV22InpaintPipeline:
    """With a UNet for the latent, the masked picture's and the mask: 9 channels in, and 8 out."""
    unet = make_unet(
        in_channels=9,
        out_channels=8,
        addition_embed_type="image",
        encoder_hid_dim=32,
        encoder_hid_dim_type="image_proj",
    )
    torch.manual_seed(1)
    movq = VQModel(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    )
    return KandinskyV22InpaintPipeline(unet=unet, scheduler=DDIMScheduler(), movq=movq.eval())


CASES = [
    Case(
        "kandinsky-inpaint",
        make_inpaint_pipeline,
        CALL,
        {"image": picture(2, 64, 64), "mask_image": picture(3, 64, 64, mode="L")},
        component="unet",
        copies=2,
    )
]
