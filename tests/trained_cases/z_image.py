"""Z-Image."""

from diffusers import ZImagePipeline
from models import z_image
from tiny_texts import make_qwen3, make_tokenizer

from trained_cases.case import Case


def make_pipeline() -> ZImagePipeline:
    """Captions differ in length."""
    parts = z_image.make_pipeline().components
    return ZImagePipeline(**parts | {"text_encoder": make_qwen3(2, width=32), "tokenizer": make_tokenizer()})


CASES = [Case("z-image", make_pipeline)]
