"""EasyAnimate."""

from diffusers import EasyAnimatePipeline
from models import easyanimate
from tiny_texts import make_qwen2_vl, make_tokenizer

from trained_cases.case import Case


def make_pipeline() -> EasyAnimatePipeline:
    """With its text encoder."""
    return EasyAnimatePipeline(
        **easyanimate.components(text_embed_dim=32), text_encoder=make_qwen2_vl(layers=2), tokenizer=make_tokenizer()
    )


CASES = [Case("easyanimate", make_pipeline, height=32, width=48, frames=9)]
