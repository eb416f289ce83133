"""CogView 4."""

import torch
from diffusers import CogView4Pipeline, FlowMatchEulerDiscreteScheduler
from models import cogview4
from tiny_texts import make_tokenizer
from transformers import GlmConfig, GlmModel

from trained_cases.case import Case


def make_pipeline(**schedule: object) -> CogView4Pipeline:
    """Captions differ in length, in steps of 16; noise levels are shifted as in its releases."""
    tokenizer = make_tokenizer(start=True)
    torch.manual_seed(3)
    config = GlmConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        pad_token_id=0,
        eos_token_id=0,
    )
    settings = {"base_shift": 0.25, "max_shift": 0.75, "use_dynamic_shifting": True, "time_shift_type": "linear"}
    parts = cogview4.make_pipeline().components
    text = {"text_encoder": GlmModel(config).eval(), "tokenizer": tokenizer}
    return CogView4Pipeline(**parts | text | {"scheduler": FlowMatchEulerDiscreteScheduler(**settings | schedule)})


def make_plainly_shifted() -> CogView4Pipeline:
    """By the same factor at every size."""
    return make_pipeline(use_dynamic_shifting=False, shift=3.0)


CASES = [
    Case("cogview4", make_pipeline, height=16, width=32),
    Case("cogview4-shift", make_plainly_shifted, height=16, width=32, variant=True),
]
