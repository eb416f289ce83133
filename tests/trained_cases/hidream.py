"""HiDream."""

import copy

import torch
from diffusers import HiDreamImagePipeline
from models import hidream
from tiny import make_clip, make_t5
from tiny_texts import make_tokenizer
from transformers import CLIPTextModelWithProjection, LlamaConfig, LlamaForCausalLM

from trained_cases.case import Case


def make_pipeline() -> HiDreamImagePipeline:
    """Text of T5 64 wide, of Llama 32, pooled text of two times 32."""
    text_encoder, tokenizer = make_clip(max_position_embeddings=128)
    clip = CLIPTextModelWithProjection(text_encoder.config).eval()
    text_encoder_3, tokenizer_3 = make_t5()
    tokenizer_4 = make_tokenizer()
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(tokenizer_4),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        attn_implementation="eager",  # the pipeline asks for attentions
    )
    parts = hidream.make_pipeline(caption_channels=[64, 32], text_emb_dim=64, max_resolution=(16, 16)).components
    second = {"text_encoder_2": copy.deepcopy(clip), "tokenizer_2": copy.deepcopy(tokenizer)}
    text = {"text_encoder": clip, "tokenizer": tokenizer, **second}
    text |= {"text_encoder_3": text_encoder_3, "tokenizer_3": tokenizer_3}
    text |= {"text_encoder_4": LlamaForCausalLM(config).eval(), "tokenizer_4": tokenizer_4}
    pipe = HiDreamImagePipeline(**parts | text)
    pipe.default_sample_size = 10  # it stretches every picture to as many pixels: here to what it is
    return pipe


CASES = [Case("hidream", make_pipeline, height=16, width=24)]
