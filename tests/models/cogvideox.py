"""CogVideoX: frames before the channels; image-to-video appends channels."""

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    DiffusionPipeline,
)
from tiny import make_t5
from torch import Tensor, nn

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


def make_transformer(**overrides: object) -> CogVideoXTransformer3DModel:
    """For latents of 4 channels, 8 times smaller than the frames; text width 64."""
    settings = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 2,
        "text_embed_dim": 64,
        "num_layers": 1,
        "sample_width": 12,
        "sample_height": 8,
        "sample_frames": 9,
        "max_text_seq_length": 16,
        "use_rotary_positional_embeddings": True,
    }
    torch.manual_seed(0)
    transformer = CogVideoXTransformer3DModel(**settings | overrides)
    nn.init.normal_(transformer.proj_out.weight, std=0.1)
    return transformer.eval()


def components(**overrides: object) -> dict[str, object]:
    """What both pipelines share."""
    text_encoder, tokenizer = make_t5()
    torch.manual_seed(1)
    vae = AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8), latent_channels=4, layers_per_block=1, norm_num_groups=2
    )
    return {
        "tokenizer": tokenizer,
        "text_encoder": text_encoder,
        "vae": vae.eval(),
        "scheduler": CogVideoXDDIMScheduler(),
        "transformer": make_transformer(**overrides),
    }


def fold(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Frames as channels."""
    return latents.flatten(1, 2)


CASES = [
    Case("cogvideox", lambda: CogVideoXPipeline(**components()), CALL, {"prompt": "a green tree"}, fold, copies=2),
    Case(
        "cogvideox-i2v",
        lambda: CogVideoXImageToVideoPipeline(**components(in_channels=8)),
        CALL | {"image": picture(0, 64, 96)},
        {"image": picture(1, 64, 96)},
        fold,
        copies=2,
    ),
]
