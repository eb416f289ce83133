"""From what somebody wrote about a picture to the captions that the denoiser is trained with."""

import hashlib
import re

from fera.config import DataConfig

# Escape sequences would reach the terminal that shows a caption.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_PLACEHOLDER = "[trigger]"


def clean(text: str, config: DataConfig) -> str:
    """One line of a caption as written: lines joined or the first alone, control characters as spaces."""
    lines = [line for line in (_CONTROL.sub(" ", line).strip() for line in text.splitlines()) if line]
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
    if re.search(rf"(?<!\w){re.escape(word)}(?!\w)", caption):
        return caption
    return f"{word}{config.caption_separator} {caption}" if caption else word


def caption_variants(caption: str, config: DataConfig, seed: int) -> list[str]:
    """The captions that training draws from for one picture.

    With `shuffle_caption`, up to `caption_variants` different orders of its tags. The order of a variant follows from
    the seed, its number and the caption alone: each is encoded once, before training, and resuming finds the same ones.

    Args:
        caption: with its trigger word.
        config: the tags that stay in front, the separator, how many variants.
        seed: of the run.

    Returns:
        At least one caption, each only once.
    """
    if not config.shuffle_caption or not caption:
        return [caption]
    separator = config.caption_separator
    tags = [tag.strip() for tag in caption.split(separator) if tag.strip()]
    leads = bool(tags) and tags[0] == config.trigger_word
    kept = max(config.keep_tokens, int(leads))

    def place(variant: int, index: int) -> bytes:
        return hashlib.sha256(f"{seed}:{variant}:{index}:{caption}".encode()).digest()

    variants = []
    for variant in range(config.caption_variants):
        moved = sorted(range(kept, len(tags)), key=lambda index, variant=variant: place(variant, index))  # type: ignore[misc]
        variants.append(f"{separator} ".join([*tags[:kept], *(tags[index] for index in moved)]))
    return list(dict.fromkeys(variants))
