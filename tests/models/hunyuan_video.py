"""HunyuanVideo: frames behind the channels."""

import torch
from diffusers import (
    AutoencoderKLHunyuanVideo,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoPipeline,
    HunyuanVideoTransformer3DModel,
)
from tiny import make_clip, make_t5
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, LlamaConfig, LlamaModel

from models.case import Case

CALL = {
    "prompt": "a red rocket",
    "prompt_template": {"template": "{}", "crop_start": 0},
    "num_inference_steps": 3,
    "height": 64,
    "width": 96,
    "num_frames": 9,
    "max_sequence_length": 16,
    "output_type": "latent",
}


def make_transformer(**overrides: object) -> HunyuanVideoTransformer3DModel:
    """A transformer for 4-channel latents, text widths 32 and 32."""
    settings = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 10,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "text_embed_dim": 32,
        "pooled_projection_dim": 32,
        "rope_axes_dim": (2, 4, 4),
    }
    torch.manual_seed(0)
    return HunyuanVideoTransformer3DModel(**settings | overrides).eval()


def make_pipeline() -> HunyuanVideoPipeline:
    """Text to video. Its Llama reads T5's tokens."""
    _, tokenizer = make_t5()
    clip, tokenizer_2 = make_clip()
    torch.manual_seed(4)
    # The pipeline asks for 77 tokens whatever the tokenizer says.
    text_encoder_2 = CLIPTextModel(CLIPTextConfig(**clip.config.to_dict() | {"max_position_embeddings": 77})).eval()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
    )
    vae = AutoencoderKLHunyuanVideo(
        latent_channels=4, block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4
    )
    return HunyuanVideoPipeline(
        text_encoder=LlamaModel(config).eval(),
        tokenizer=tokenizer,
        transformer=make_transformer(),
        vae=vae.eval(),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=7.0),
        text_encoder_2=text_encoder_2,
        tokenizer_2=tokenizer_2,
    )


def fold(pipe: DiffusionPipeline, latents: Tensor) -> Tensor:
    """Frames as channels."""
    return latents.flatten(1, 2)


CASES = [Case("hunyuan-video", make_pipeline, CALL, {"prompt": "a green tree"}, fold)]
