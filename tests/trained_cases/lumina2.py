"""Lumina-Image 2."""

from diffusers import Lumina2Pipeline
from models import lumina2
from tiny import make_t5, make_vae
from tiny_texts import make_gemma2

from trained_cases.case import Case


def make_pipeline() -> Lumina2Pipeline:
    """It takes every autoencoder for one of scale 8: this one is."""
    vae = make_vae(
        shift_factor=0.1,
        block_out_channels=(4, 4, 4, 4),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
    )
    parts = lumina2.make_pipeline(longest_text=300).components
    return Lumina2Pipeline(**parts | {"vae": vae, "text_encoder": make_gemma2(), "tokenizer": make_t5()[1]})


CASES = [Case("lumina2", make_pipeline, height=32, width=48)]
