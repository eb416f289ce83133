"""What a base's text encoders do not read of captions: said before training, since it is lost without a trace."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fera.adapters.text.encoders import tokenizer_name
from fera.data.example import Example, some_of
from fera.errors import FeraError
from fera.models.families import Family
from fera.models.prompts import as_read, instruction, prompt_settings

_SHOWN = 40  # characters of a part that is cut


@dataclass(frozen=True)
class TextLimit:
    """How much of captions one text encoder reads.

    Args:
        encoder: name of the text encoder.
        tokens: that it reads of a caption, its own special ones among them.
        cut: name of each picture whose caption is longer, to the beginning of what is cut.
    """

    encoder: str
    tokens: int
    cut: dict[str, str] = field(default_factory=dict)


def text_limits(pipe: Any, family: Family, examples: Sequence[Example]) -> list[TextLimit]:
    """What each text encoder of a pipeline reads of the captions, as the pipeline reads prompts.

    Args:
        pipe: the base.
        family: its family.
        examples: with the captions that are trained on.
    """
    captions = [as_read(pipe, example.caption) for example in examples]
    limits = []
    for encoder, tokenizer, limit in _tokenizers(pipe, family):
        parts = _cut_parts(tokenizer, captions, limit, instruction(pipe))
        cut = {example.name: part for example, part in zip(examples, parts, strict=True) if part}
        limits.append(TextLimit(encoder, limit, cut))
    return limits


def describe_limits(limits: Sequence[TextLimit]) -> list[str]:
    """A line about each text encoder that cuts captions."""
    lines = []
    for limit in limits:
        if not limit.cut:
            continue
        name, part = next(iter(limit.cut.items()))
        others = [other.encoder for other in limits if not limit.cut.keys() & other.cut.keys()]
        whole = f". Read whole by {', '.join(others)}" if others else ""
        lines.append(
            f"captions cut at the {limit.tokens} tokens that {limit.encoder} reads: {len(limit.cut)} "
            f"({some_of(list(limit.cut))}), {name} from {part!r} on{whole}"
        )
    return lines


def check_cleaning(pipe: Any, examples: Sequence[Example], trigger_word: str | None) -> list[str]:
    """Find captions of which the pipeline removes something before its text encoder reads them.

    Some pipelines (PixArt) clean prompts, where the packages for it are installed: words in <>, [] or (), among others,
    are gone then. Training does the same, or it would train on words that are never drawn with.

    Args:
        pipe: the base.
        examples: with the captions that are trained on.
        trigger_word: as in the configuration.

    Returns:
        A line about them; none where nothing is removed.

    Raises:
        FeraError: the trigger word is removed, so nothing could be drawn by it.
    """
    if not prompt_settings(pipe).get("clean_caption"):
        return []
    name = type(pipe).__name__
    if trigger_word is not None and trigger_word.lower() not in as_read(pipe, f"a {trigger_word} b"):
        raise FeraError(
            f"data.trigger_word is {trigger_word!r}, but {name} removes it from prompts when it cleans them: choose a "
            "word of letters alone"
        )
    changed = {
        example.name: after
        for example in examples
        if (after := as_read(pipe, example.caption)) != example.caption.lower().strip()
    }
    if not changed:
        return []
    first, after = next(iter(changed.items()))
    return [
        f"captions that {name} cleans, as it does prompts: {len(changed)} ({some_of(list(changed))}), {first} is read "
        f"as {after!r}"
    ]


def _tokenizers(pipe: Any, family: Family) -> Iterator[tuple[str, Any, int]]:
    """Each text encoder's name, its tokenizer, and how many tokens of a caption the pipeline gives it."""
    for encoder in family.text_components:
        known = encoder in family.clip or encoder in family.reads
        if not known or getattr(pipe, encoder) is None:
            continue
        tokenizer = getattr(pipe, tokenizer_name(encoder))
        if encoder in family.clip:
            # Some pipelines read the limit off the first tokenizer, for all that are CLIP's.
            yield encoder, tokenizer, getattr(pipe, "tokenizer_max_length", tokenizer.model_max_length)
        else:
            yield encoder, tokenizer, family.reads[encoder] or prompt_settings(pipe)["max_sequence_length"]


def _cut_parts(tokenizer: Any, captions: Sequence[str], limit: int, before: str) -> list[str]:
    """The beginning of what is cut of each caption; empty where nothing is."""
    # As Sana counts: what stands before takes no room, but for the special tokens of its own.
    room = limit + (len(tokenizer.encode(before)) - 2 if before else 0)
    texts = list(dict.fromkeys(before + caption for caption in captions))
    # All at once is many times as quick, and few captions are too long.
    tokens = tokenizer(texts, truncation=False, verbose=False).input_ids if texts else []
    long = {text: _cut_part(tokenizer, text, room) for text, own in zip(texts, tokens, strict=True) if len(own) > room}
    return [long.get(before + caption, "") for caption in captions]


def _cut_part(tokenizer: Any, text: str, room: int) -> str:
    whole = tokenizer(text, truncation=False, verbose=False, return_offsets_mapping=tokenizer.is_fast)
    kept = tokenizer(text, truncation=True, max_length=room).input_ids
    special = set(tokenizer.all_special_ids)
    words = [place for place, token in enumerate(whole.input_ids) if token not in special]
    lost = words[sum(token not in special for token in kept) :]
    if not lost:
        return ""
    if tokenizer.is_fast:
        part = text[whole.offset_mapping[lost[0]][0] :].strip()
    else:
        part = str(tokenizer.decode([whole.input_ids[place] for place in lost])).strip()
    return part if len(part) <= _SHOWN else f"{part[:_SHOWN]}…"
