"""From what somebody wrote about a picture to the captions that the denoiser is trained with."""

import hashlib
import re

from fera.config import DataConfig

# Escape sequences would reach the terminal that shows a caption.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_PLACEHOLDER = "[trigger]"


def clean(text: str, config: DataConfig) -> str:
    """One line of a caption as written: lines joined or the first alone, control characters as spaces."""
    # A form feed or Unicode's own separators end no line in an editor: what follows them is not left out.
    lines = [line for line in map(_one_line, re.split(r"[\r\n]+", text)) if line]
    return " ".join(lines if config.caption_lines == "join" else lines[:1])


def with_trigger(caption: str, config: DataConfig) -> str:
    """A caption with the trigger word in it.

    It takes the place of `[trigger]` where the caption has that; a caption that has the word already stays as it is;
    any other gets it in front.
    """
    word = config.trigger_word
    if word is None:
        return caption
    if _PLACEHOLDER in caption:
        return caption.replace(_PLACEHOLDER, word)
    if _has_word(caption, word):
        return caption
    return f"{word}{config.caption_separator} {caption}" if caption else word


def caption_variants(caption: str, config: DataConfig, seed: int) -> list[str]:
    """The captions that training draws from for one picture.

    With `shuffle_caption`, up to `caption_variants` different orders of its tags. A trigger word is never torn apart,
    and the tag that has it stays in front if it comes first. The order of a variant follows from
    the seed, its number and the caption alone: each is encoded once, before training, and resuming finds the same ones.

    Args:
        caption: with its trigger word.
        config: the tags that stay in front, the separator, how many variants.
        seed: the seed of the run.

    Returns:
        At least one caption, each only once.
    """
    if not config.shuffle_caption or not caption:
        return [caption]
    separator = config.caption_separator
    tags = _tags(caption, config)
    kept = _kept(tags, config)

    def place(variant: int, index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{variant}:{index}:{caption}".encode()).digest()

    variants = []
    for variant in range(config.caption_variants):
        moved = sorted(range(kept, len(tags)), key=lambda index, variant=variant: place(variant, index))  # type: ignore[misc]
        variants.append(f"{separator} ".join([*tags[:kept], *(tags[index] for index in moved)]))
    return list(dict.fromkeys(variants))


def _one_line(text: str) -> str:
    pieces = [_CONTROL.sub(" ", piece).strip() for piece in text.splitlines()]
    return " ".join(piece for piece in pieces if piece)


def _tags(caption: str, config: DataConfig) -> list[str]:
    """Tags of a caption; what a trigger word that is several tags spans is one."""
    word, hidden = config.trigger_word, "\0"  # no caption has it
    whole = caption.replace(word, hidden) if word is not None else caption
    tags = [tag.strip() for tag in whole.split(config.caption_separator) if tag.strip()]
    return [tag.replace(hidden, word) for tag in tags] if word is not None else tags


def _kept(tags: list[str], config: DataConfig) -> int:
    """How many stay in front: `keep_tokens` as they are written, and the first one if it has the trigger word."""
    word, separator = config.trigger_word, config.caption_separator
    kept = int(bool(tags) and word is not None and _has_word(tags[0], word))
    written = [sum(1 for part in tag.split(separator) if part.strip()) for tag in tags]
    while kept < len(tags) and sum(written[:kept]) < config.keep_tokens:
        kept += 1
    return kept


def _has_word(text: str, word: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None
