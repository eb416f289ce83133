"""LTX-Video: packed frames, their sizes in arguments."""

import torch
from diffusers import (
    AutoencoderKLLTXVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from tiny import make_t5
from torch import Tensor

from models.case import Case
from models.inputs import picture

CALL = {
    "prompt": "a red rocket",
    "negative_prompt": "a tree",
    "num_inference_steps": 3,
    "guidance_scale": 3.0,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def components() -> dict[str, object]:
    """What both pipelines share: latents of 8 channels, 8 times smaller than the frames."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(1)
    vae = AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=2,
    )
    torch.manual_seed(0)
    transformer = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=64,
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae.eval(),
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "transformer": transformer.eval(),
    }


def unpack(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """With the pipeline's own function, then frames as channels."""
    height = CALL["height"] // pipe.vae_spatial_compression_ratio
    width = CALL["width"] // pipe.vae_spatial_compression_ratio
    frames = (CALL["num_frames"] - 1) // pipe.vae_temporal_compression_ratio + 1
    return pipe._unpack_latents(latents, frames, height, width).flatten(1, 2)


def fold_drawn(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Frames as channels: this pipeline's scheduler gets unpacked frames, without the given one."""
    return latents.flatten(1, 2)


CASES = [
    Case("ltx", lambda: LTXPipeline(**components()), CALL, {"prompt": "a green tree"}, unpack, copies=2),
    Case(
        "ltx-i2v",
        lambda: LTXImageToVideoPipeline(**components()),
        CALL | {"image": picture(0, 64, 96)},
        {"image": picture(1, 64, 96)},
        fold_drawn,
        copies=2,
    ),
]
