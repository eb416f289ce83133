"""Tiny language models as text encoders, and tokenizers with templates for chats."""

import copy
from functools import cache
from typing import Any

import torch
from tiny import WORDS, make_t5
from tokenizers.processors import TemplateProcessing
from transformers import (
    Gemma2Config,
    Gemma2Model,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
    Qwen2VLImageProcessorPil,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLModel,
    SmolLM3Config,
    SmolLM3ForCausalLM,
)

# diffusers asks the module of a tokenizer's class for this one.
__all__ = ["PreTrainedTokenizerFast"]
# As the templates of chat models: roles, and contents that are a string or a list of parts.
_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}{{ part['text'] }}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@cache
def _trained_tokenizer() -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        WORDS, 300, show_progress=False, new_special_tokens=["<|im_start|>", "<|im_end|>"]
    )
    tokenizer.chat_template = _TEMPLATE
    tokenizer.model_max_length = 128
    return tokenizer


def make_tokenizer(start: bool = False) -> Qwen2Tokenizer:
    """Of bytes and a few words; with `start`, a token comes before every text, so that none is empty."""
    tokenizer = copy.deepcopy(_trained_tokenizer())
    if start:
        token = "<|im_start|>"
        special = [(token, tokenizer.convert_tokens_to_ids(token))]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=special)
    return tokenizer


class Processor(Qwen2Tokenizer):
    """The texts' part of a processor of pictures and texts, whose other parts need a package that may be absent."""

    @property
    def tokenizer(self) -> Qwen2Tokenizer:
        """Its own."""
        return self

    def apply_chat_template(self, conversation: Any, *args: Any, **kwargs: Any) -> Any:
        """Of one conversation, as a batch, as processors do."""
        return [super().apply_chat_template(conversation, *args, **kwargs)]


def make_processor() -> Processor:
    """With a token for pictures."""
    processor = Processor().train_new_from_iterator(
        WORDS, 300, show_progress=False, new_special_tokens=["<|im_start|>", "<|im_end|>", "<|image_pad|>"]
    )
    processor.chat_template = _TEMPLATE
    return processor


def make_qwen3(layers: int, width: int = 8) -> Qwen3ForCausalLM:
    """One head."""
    torch.manual_seed(3)
    config = Qwen3Config(
        vocab_size=len(make_tokenizer()),
        hidden_size=width,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    return Qwen3ForCausalLM(config).eval()


class SeeingProcessor(Processor):
    """Of texts with pictures: what transformers' processor does, whose part for videos needs a package of its own."""

    def __call__(self, text: Any, images: Any = None, **kwargs: Any) -> Any:
        if images is None:
            return super().__call__(text, **kwargs)
        seen = Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=64 * 64)(images=images, return_tensors="pt")
        texts = []
        counts = iter((grid.prod() // 4).item() for grid in seen["image_grid_thw"])
        for one in text:
            first, *rest = one.split("<|image_pad|>")
            texts.append("".join([first, *("<|image_pad|>" * next(counts) + part for part in rest)]))
        told = super().__call__(texts, **kwargs)
        told.update(seen)
        return told


def make_seeing_processor() -> SeeingProcessor:
    """With tokens for pictures."""
    return SeeingProcessor().train_new_from_iterator(
        WORDS,
        300,
        show_progress=False,
        new_special_tokens=["<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>"],
    )


def make_qwen2_vl(layers: int = 1, sees: Any = None) -> Qwen2_5_VLForConditionalGeneration:
    """32 wide; `sees` is the processor whose tokens stand for pictures."""
    torch.manual_seed(3)
    named = {"image_token_id": "<|image_pad|>", "vision_start_token_id": "<|vision_start|>"}
    tokens = {} if sees is None else {name: sees.convert_tokens_to_ids(token) for name, token in named.items()}
    text = {
        "vocab_size": len(sees or make_tokenizer()),
        "hidden_size": 32,
        "intermediate_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 32}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    return Qwen2_5_VLForConditionalGeneration(config).eval()


def make_gemma2() -> Gemma2Model:
    """32 wide, for the tokenizer of T5."""
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=len(make_t5()[1]),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
    )
    return Gemma2Model(config).eval()


def make_qwen3_vl(layers: int = 2, width: int = 32) -> Qwen3VLModel:
    """One head."""
    torch.manual_seed(3)
    return Qwen3VLModel(_qwen3_vl_config(layers, width)).eval()


def make_qwen3_vl_lm(layers: int, width: int = 32) -> Qwen3VLForConditionalGeneration:
    """With its head."""
    torch.manual_seed(3)
    return Qwen3VLForConditionalGeneration(_qwen3_vl_config(layers, width)).eval()


def _qwen3_vl_config(layers: int, width: int) -> Qwen3VLConfig:
    text = {
        "vocab_size": len(make_tokenizer()),
        "hidden_size": width,
        "intermediate_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "rope_scaling": {"rope_type": "default", "mrope_section": [2, 1, 1]},
    }
    vision = {"depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": width}
    vision |= {"deepstack_visual_indexes": [0]}
    return Qwen3VLConfig(text_config=text, vision_config=vision)


def make_mistral3(layers: int) -> Mistral3ForConditionalGeneration:
    """8 wide."""
    torch.manual_seed(3)
    text = MistralConfig(
        vocab_size=len(make_tokenizer()),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=layers,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
    )
    vision = PixtralVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=16, patch_size=8
    )
    config = Mistral3Config(text_config=text, vision_config=vision, image_token_index=1)
    return Mistral3ForConditionalGeneration(config).eval()


def make_smollm3() -> SmolLM3ForCausalLM:
    """32 wide, two layers; its pipeline has a token of its own for empty prompts."""
    torch.manual_seed(3)
    config = SmolLM3Config(
        vocab_size=128_001,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        pad_token_id=0,
    )
    return SmolLM3ForCausalLM(config).eval()
