"""Tiny models that caption pictures: their weights are random, and their words mean nothing."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    BertTokenizerFast,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
    CLIPImageProcessor,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

SMALL = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
LAYERS = {"layers": 1, "attention_heads": 2, "ffn_dim": 16}
WORDS = [f"word{number}" for number in range(20)]
BERT_WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "[DEC]", *WORDS]
CHAT = (
    "{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}assistant {% endif %}"
)


def save_blip(folder: Path) -> None:
    """BLIP, which is asked nothing."""
    marks = {"bos_token_id": 5, "pad_token_id": 0, "eos_token_id": 3, "sep_token_id": 3}
    text = {**SMALL, **marks, "vocab_size": len(BERT_WORDS), "encoder_hidden_size": 16, "max_position_embeddings": 32}
    config = BlipConfig(text_config=text, vision_config={**SMALL, "image_size": 16, "patch_size": 8}, projection_dim=16)
    image = BlipImageProcessor(size={"height": 16, "width": 16})
    _save(folder, BlipForConditionalGeneration(config), BlipProcessor(image, _bert_tokenizer(folder)), seed=6)


def save_git(folder: Path) -> None:
    """GIT, likewise; what it answers follows the picture's tokens without a text."""
    marks = {"bos_token_id": 2, "pad_token_id": 0, "eos_token_id": 3}
    vision = {**SMALL, "image_size": 16, "patch_size": 8}
    config = GitConfig(vision_config=vision, vocab_size=len(BERT_WORDS), max_position_embeddings=64, **SMALL, **marks)
    _save(folder, GitForCausalLM(config), GitProcessor(_images(), _bert_tokenizer(folder)))


def save_florence(folder: Path) -> None:
    """Florence-2, which is asked by the names of its tasks."""
    tokenizer = _word_tokenizer("Describe in detail what is shown the image.")
    marks = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    layers = {f"{side}_{what}": count for side in ("encoder", "decoder") for what, count in LAYERS.items()}
    text = {"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 16, "max_position_embeddings": 128}
    text |= {**layers, **marks, "forced_eos_token_id": None}
    vision = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    vision |= {"patch_prenorm": (False, True), "embed_dim": (8, 16), "num_heads": (2, 2), "num_groups": (2, 2)}
    vision |= {"window_size": 2, "projection_dim": 16}
    config = Florence2Config(text_config=text, vision_config=vision, image_token_id=tokenizer.image_token_id)
    model = Florence2ForConditionalGeneration(config)
    images = _images(image_seq_length=5)  # 2 x 2 places, and one for all of them
    _save(folder, model, Florence2Processor(images, tokenizer), seed=2)


def save_llava(folder: Path) -> None:
    """LLaVA, which is asked by a chat template."""
    tokenizer = _word_tokenizer("user assistant Describe this picture in one sentence.")
    text = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **SMALL)
    vision = CLIPVisionConfig(image_size=16, patch_size=8, **SMALL)
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=tokenizer.convert_tokens_to_ids("<image>")
    )
    processor = LlavaProcessor(
        _images(),
        tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    )
    _save(folder, LlavaForConditionalGeneration(config), processor)


CASES = {"blip": save_blip, "git": save_git, "florence2": save_florence, "llava": save_llava}


def _save(folder: Path, model: Any, processor: Any, seed: int = 0) -> None:
    torch.manual_seed(seed)  # of those whose words depend on the picture
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=2.0)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


def _images(**more: Any) -> CLIPImageProcessor:
    size = {"height": 16, "width": 16}
    return CLIPImageProcessor(size=size, crop_size=size, **more)


def _bert_tokenizer(folder: Path) -> BertTokenizerFast:
    (folder / "vocab.txt").write_text("\n".join(BERT_WORDS))
    return BertTokenizerFast(str(folder / "vocab.txt"), bos_token="[DEC]")


def _word_tokenizer(words: str) -> PreTrainedTokenizerFast:
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *dict.fromkeys(words.split()), *WORDS]
    inner = Tokenizer(WordLevel({word: number for number, word in enumerate(vocabulary)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, extra_special_tokens={"image_token": "<image>"}, **marks)
