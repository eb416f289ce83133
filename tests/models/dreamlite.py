"""DreamLite: the given picture lies beside the one that is drawn."""

import torch
from diffusers import AutoencoderTiny, DreamLitePipeline, DreamLiteUNetModel, FlowMatchEulerDiscreteScheduler
from tiny_texts import make_qwen2_vl, make_seeing_processor

from models.case import Case
from models.inputs import awake, picture

CALL = {
    "prompt": "a red rocket",
    "num_images_per_prompt": 2,
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 32,
    "width": 64,
    "max_sequence_length": 512,
    "output_type": "latent",
}


def make_pipeline() -> DreamLitePipeline:
    """Latents half as large as pictures."""
    processor = make_seeing_processor()
    torch.manual_seed(0)
    unet = DreamLiteUNetModel(
        sample_size=8,
        down_block_types=("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"),
        up_block_types=("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"),
        block_out_channels=(16, 32),
        cross_attention_dim=32,
        attention_head_dim=8,
        layers_per_block=1,
        norm_num_groups=8,
    )
    vae = AutoencoderTiny(
        encoder_block_out_channels=(16, 16),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )
    return DreamLitePipeline(
        text_encoder=make_qwen2_vl(sees=processor),
        tokenizer=processor,
        processor=processor,
        vae=vae.eval(),
        unet=awake(unet),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


CASES = [
    Case("dreamlite", make_pipeline, CALL, {"prompt": "a green tree"}, component="unet", copies=2),
    Case(
        "dreamlite-edit",
        make_pipeline,
        CALL | {"image": picture(0, 32, 64), "num_images_per_prompt": 1},
        {"image": picture(1, 32, 64)},
        component="unet",
        copies=3,
    ),
]
