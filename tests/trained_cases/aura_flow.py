"""AuraFlow."""

import torch
from diffusers import AuraFlowPipeline
from models import aura_flow
from tiny import make_t5
from transformers import UMT5Config, UMT5EncoderModel

from trained_cases.case import Case


def make_pipeline() -> AuraFlowPipeline:
    """Text 32 wide."""
    tokenizer = make_t5()[1]
    torch.manual_seed(3)
    config = UMT5Config(vocab_size=len(tokenizer), d_model=32, d_kv=16, d_ff=32, num_layers=1, num_heads=2)
    parts = aura_flow.make_pipeline().components
    return AuraFlowPipeline(**parts | {"text_encoder": UMT5EncoderModel(config).eval(), "tokenizer": tokenizer})


CASES = [Case("aura-flow", make_pipeline)]
