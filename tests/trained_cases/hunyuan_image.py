"""HunyuanImage."""

import torch
from diffusers import HunyuanImagePipeline
from models import hunyuan
from tiny_texts import make_qwen2_vl, make_tokenizer
from transformers import ByT5Tokenizer, T5Config, T5EncoderModel

from trained_cases.case import Case


def make_pipeline() -> HunyuanImagePipeline:
    """Without a guider."""
    tokenizer_2 = ByT5Tokenizer()
    torch.manual_seed(3)
    config = T5Config(vocab_size=len(tokenizer_2), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    parts = hunyuan.make_image_pipeline().components
    text = {"text_encoder": make_qwen2_vl(layers=3), "tokenizer": make_tokenizer()}
    text |= {"text_encoder_2": T5EncoderModel(config).eval(), "tokenizer_2": tokenizer_2}
    return HunyuanImagePipeline(**parts | text | {"guider": None})


CASES = [Case("hunyuan-image", make_pipeline)]
