"""Qwen-Image."""

from diffusers import QwenImagePipeline
from models import qwen_image
from models.qwen_image_vae import make_vae
from tiny_texts import make_qwen2_vl, make_tokenizer

from trained_cases.case import Case


def make_pipeline() -> QwenImagePipeline:
    """Captions differ in length."""
    parts = qwen_image.make_pipeline().components
    return QwenImagePipeline(
        **parts | {"vae": make_vae(), "text_encoder": make_qwen2_vl(), "tokenizer": make_tokenizer()}
    )


CASES = [Case("qwen-image", make_pipeline)]
