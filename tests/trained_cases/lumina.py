"""Lumina-Next."""

from diffusers import LuminaPipeline
from models import lumina
from tiny import make_t5
from tiny_texts import make_gemma2

from trained_cases.case import Case


def make_pipeline() -> LuminaPipeline:
    """With its text encoder."""
    parts = lumina.make_pipeline().components
    return LuminaPipeline(
        **parts
        | {
            "text_encoder": make_gemma2(),
            "tokenizer": make_t5()[1],
            "transformer": lumina.make_transformer(cross_attention_dim=32),
        }
    )


CASES = [Case("lumina-next", make_pipeline, height=32, width=64)]
