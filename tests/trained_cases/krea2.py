"""Krea 2."""

from diffusers import Krea2Pipeline
from models import krea2
from models.qwen_image_vae import make_vae
from tiny_texts import make_qwen3_vl, make_tokenizer

from trained_cases.case import Case


def make_pipeline() -> Krea2Pipeline:
    """States of two layers."""
    parts = krea2.make_pipeline().components
    parts |= {"vae": make_vae(), "text_encoder": make_qwen3_vl(), "tokenizer": make_tokenizer()}
    return Krea2Pipeline(**parts, text_encoder_select_layers=(1, 2))


CASES = [Case("krea2", make_pipeline, height=16, width=24)]
