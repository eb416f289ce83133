"""Hunyuan-DiT."""

import copy
from functools import cache

import torch
from diffusers import HunyuanDiTPipeline
from models import hunyuan
from tiny import WORDS, make_t5
from transformers import BertConfig, BertModel, BertTokenizer

from trained_cases.case import Case


@cache
def _trained_tokenizer() -> BertTokenizer:
    """Once: each training breaks ties its own way."""
    return BertTokenizer().train_new_from_iterator(WORDS, 200, show_progress=False)


def make_pipeline() -> HunyuanDiTPipeline:
    """Text 32 and 64 wide, of 77 and 256 tokens."""
    text_encoder_2, tokenizer_2 = make_t5()
    tokenizer = copy.deepcopy(_trained_tokenizer())
    torch.manual_seed(3)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    parts = hunyuan.make_dit_pipeline(cross_attention_dim_t5=64, text_len=77, text_len_t5=256).components
    text = {"text_encoder": BertModel(config).eval(), "tokenizer": tokenizer}
    text |= {"text_encoder_2": text_encoder_2, "tokenizer_2": tokenizer_2}
    return HunyuanDiTPipeline(**parts | text, requires_safety_checker=False)


CASES = [Case("hunyuan-dit", make_pipeline, height=32, width=48)]
