"""A learned token in ComfyUI's tokenizers: a word of the prompt, as it was in training."""

import copy
import uuid
from functools import partial
from typing import Any

from torch import Tensor

from fera.adapters.text.files import TextFiles
from fera.errors import FeraError

# ComfyUI's names of the tokenizers for a pipeline's text encoders.
_TOKENIZERS = {"text_encoder": ("clip_l", "clip_h"), "text_encoder_2": ("clip_g",)}
# Where a copy keeps the words it was taught: their vectors by the names of embeddings that they are turned into.
_WORDS, _VECTORS = "fera_words", "fera_vectors"


def with_token(clip: Any, text: TextFiles, adapter: str) -> Any:
    """A clone of ComfyUI's `CLIP` whose tokenizers know an adapter's token.

    Args:
        clip: a `CLIP`.
        text: the parts, with a token.
        adapter: name of the adapter, for messages.

    Raises:
        FeraError: the CLIP has no such text encoder, or one of another width.
    """
    clip = clip.clone()
    clip.tokenizer = copy.copy(clip.tokenizer)
    for encoder in text.vectors:
        name = next((name for name in _TOKENIZERS.get(encoder, ()) if hasattr(clip.tokenizer, name)), None)
        rows = text.rows(encoder)
        if name is None or getattr(clip.tokenizer, name).embedding_size != rows.shape[1]:
            raise FeraError(
                f"{adapter} has learned the token {text.token} for a {encoder} {rows.shape[1]} wide, which this CLIP "
                "has not: give the CLIP of the base that it was trained on. Words of T5 and of language models are not "
                "taken here: draw with fera generate"
            )
        setattr(clip.tokenizer, name, _taught(getattr(clip.tokenizer, name), str(text.token), rows))
    return clip


def _taught(tokenizer: Any, word: str, rows: Tensor) -> Any:
    """A copy of a tokenizer that takes a word for an embedding of its own, as ComfyUI takes those of files."""
    taught = copy.copy(tokenizer)
    name = f"fera-{uuid.uuid4().hex}"
    words = {**getattr(tokenizer, _WORDS, {}), word: name}
    vectors = {**getattr(tokenizer, _VECTORS, {}), name: rows}
    setattr(taught, _WORDS, words)
    setattr(taught, _VECTORS, vectors)
    if taught.embedding_directory is None:  # then it looks for no embeddings at all
        taught.embedding_directory = []
    taught.tokenize_with_weights = partial(_tokenize, taught, words)
    taught._try_get_embedding = partial(_look_up, taught, vectors)
    return taught


def _tokenize(tokenizer: Any, words: dict[str, str], text: str, *arguments: Any, **options: Any) -> Any:
    # The longest first: one word may begin with another.
    for word in sorted(words, key=len, reverse=True):
        text = text.replace(word, f" {tokenizer.embedding_identifier}{words[word]} ")
    return type(tokenizer).tokenize_with_weights(tokenizer, text, *arguments, **options)


def _look_up(tokenizer: Any, vectors: dict[str, Tensor], name: str) -> Any:
    """The embedding, its name and what is left of the text behind it."""
    first, _, left = name.partition(" ")
    if first in vectors:
        return vectors[first], first, left.strip()
    return type(tokenizer)._try_get_embedding(tokenizer, name)
