"""The tokenizer of CLIP's text encoders, which every checkpoint with one was trained with and none holds."""

import gzip
from pathlib import Path
from typing import Any

from transformers import CLIPTokenizer

_MERGES = Path(__file__).parent / "configurations" / "clip_merges.txt.gz"
_START, _END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(pad_token: str = _END) -> Any:
    """A tokenizer of 49,408 tokens and sentences of 77.

    Args:
        pad_token: what fills sentences: OpenAI's encoders take the end, OpenCLIP's "!", which is token 0.
    """
    lines = gzip.decompress(_MERGES.read_bytes()).decode("utf-8").splitlines()[1:]
    merges: Any = [tuple(line.split()) for line in lines if line]  # of what transformers takes, its types know less
    letters = _letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), *("".join(pair) for pair in merges), _START, _END]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=merges, pad_token=pad_token, model_max_length=77)


def _letters() -> list[str]:
    """A letter that can be seen for each byte, in the order of CLIP's vocabulary: those that are one come first."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [number for number in range(256) if number not in seen]
    return [chr(number) for number in seen] + [chr(256 + place) for place in range(len(others))]
