"""Kolors."""

from functools import cache
from io import BytesIO
from tempfile import NamedTemporaryFile

import sentencepiece
import torch
from diffusers import EulerDiscreteScheduler, KolorsPipeline
from diffusers.pipelines.kolors.text_encoder import ChatGLMConfig, ChatGLMModel
from diffusers.pipelines.kolors.tokenizer import ChatGLMTokenizer
from tiny import WORDS, make_unet, make_vae

from trained_cases.case import Case


@cache
def trained_words() -> bytes:
    """The model of a tokenizer: letters and a few words."""
    model = BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(WORDS), model_writer=model, vocab_size=26, minloglevel=2
    )
    return model.getvalue()


def make_tokenizer() -> ChatGLMTokenizer:
    """It puts padding before a text, and says where each token stands."""
    with NamedTemporaryFile(suffix=".model", delete=False) as file:
        file.write(trained_words())
    return ChatGLMTokenizer(file.name)


def make_pipeline() -> KolorsPipeline:
    """Text 32 wide."""
    tokenizer = make_tokenizer()
    torch.manual_seed(3)
    config = ChatGLMConfig(
        num_layers=2,
        padded_vocab_size=128,
        hidden_size=32,
        ffn_hidden_size=32,
        kv_channels=16,
        num_attention_heads=2,
        seq_length=256,
        add_qkv_bias=True,
        original_rope=True,
    )
    text_encoder = ChatGLMModel(config).eval()
    for parameter in text_encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # some start as whatever was in memory
    unet = make_unet(
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32
    )
    return KolorsPipeline(
        vae=make_vae(),
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=EulerDiscreteScheduler(),
    )


CASES = [Case("kolors", make_pipeline)]
