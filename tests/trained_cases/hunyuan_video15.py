"""HunyuanVideo 1.5."""

import torch
from diffusers import ClassifierFreeGuidance, HunyuanVideo15ImageToVideoPipeline, HunyuanVideo15Pipeline
from models import hunyuan_video15
from tiny_texts import make_qwen2_vl, make_tokenizer
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from trained_cases.case import Case


def make_pipeline() -> HunyuanVideo15Pipeline:
    """With its text encoders, and a guider that does not guide."""
    tokenizer_2 = ByT5Tokenizer()
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=4)
    parts = hunyuan_video15.components(text_embed_dim=32)
    parts |= {
        "text_encoder": make_qwen2_vl(layers=3).model.language_model,
        "tokenizer": make_tokenizer(),
        "text_encoder_2": T5EncoderModel(config).eval(),
        "tokenizer_2": tokenizer_2,
        "guider": ClassifierFreeGuidance(guidance_scale=1.0),
    }
    return HunyuanVideo15Pipeline(**parts)


def make_image_to_video() -> HunyuanVideo15ImageToVideoPipeline:
    """A vision encoder sees the given frame too."""
    vision = hunyuan_video15.make_image_to_video().components
    parts = make_pipeline().components
    transformer = hunyuan_video15.make_transformer(text_embed_dim=32, task_type="i2v", target_size=40)
    return HunyuanVideo15ImageToVideoPipeline(**vision | parts | {"transformer": transformer})


CASES = [
    Case("hunyuan-video-1.5", make_pipeline, height=32, width=48, frames=5),
    Case("hunyuan-video-1.5-i2v", make_image_to_video, height=32, width=48, frames=5, given=1, variant=True),
]
