"""Which text encoders of a base learn, and which of its parts a step needs for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from fera.adapters.text.encoders import ENCODER, text_encoders, tokenizer_part
from fera.adapters.text.kinds import CLIP, EncoderKind, kind_of
from fera.config import TrainConfig
from fera.errors import FeraError
from fera.models.families import Family
from fera.models.family import EncodePart


@dataclass(frozen=True)
class LearningEncoders:
    """Text encoders that learn, by their names in the pipeline and in its order.

    Args:
        loras: those that get a LoRA.
        tokens: those that learn a word.
        encode_parts: how the parts of the conditions that they make are computed anew; None where all is encoded anew.
        needed: names of the pipeline's parts that this takes.
    """

    loras: tuple[str, ...]
    tokens: tuple[str, ...]
    encode_parts: tuple[EncodePart, ...] | None
    needed: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Those that learn anything."""
        return tuple(sorted({*self.loras, *self.tokens}))


def learning_encoders(pipe: Any, family: Family, config: TrainConfig) -> LearningEncoders:
    """The text encoders that learn in a run.

    Args:
        pipe: the base, with its text encoders.
        family: its family.
        config: the configuration of the run; it trains text.

    Raises:
        FeraError: an encoder that is to learn cannot, or is not there.
    """
    loras: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    if config.text_encoder.train_text_encoder:
        loras = _chosen(pipe, family, config.text_encoder.encoders, "text_encoder")
    if config.tokens.placeholder_token is not None:
        tokens = _chosen(pipe, family, config.tokens.encoders, "tokens")
    learning = {*loras, *tokens}
    there = {name for name in family.text_components if ENCODER.fullmatch(name) and _part(pipe, name) is not None}
    groups = [names for names in family.encode_part if learning.intersection(names)]
    if learning == there or not learning <= {name for names in groups for name in names}:
        return LearningEncoders(loras, tokens, None, family.text_components)
    encoders = [name for names in groups for name in names]
    needed = (*encoders, *(tokenizer_part(pipe, name) for name in encoders))
    return LearningEncoders(loras, tokens, tuple(family.encode_part[names] for names in groups), needed)


def describe_encoder(pipe: Any, name: str) -> str:
    """A text encoder as messages call it: its name in the pipeline and its kind."""
    kind = kind_of(_part(pipe, name))
    return f"{name} ({kind.name if kind is not None else type(_part(pipe, name)).__name__})"


def _part(pipe: Any, name: str) -> Any:
    part = getattr(pipe, name, None)
    return getattr(part, "_orig_mod", part)


def _chosen(pipe: Any, family: Family, asked: Sequence[str] | None, section: str) -> tuple[str, ...]:
    """Text encoders that are to learn, in the pipeline's order."""
    pipeline = type(pipe).__name__
    if family.pairs is not None and family.pairs.encode is not None:
        raise FeraError(
            f"the section {section} is set, but a {pipeline} reads captions together with the pictures that it is "
            "given, which are encoded once, before training: leave the sections text_encoder and tokens out"
        )
    own = [name for name in family.text_components if ENCODER.fullmatch(name)]
    if not own:
        raise FeraError(
            f"the section {section} is set, but a {pipeline} has no text encoder of its own: leave the sections "
            "text_encoder and tokens out"
        )
    known = text_encoders(pipe)
    reasons = dict(family.untrained)
    for name in own:
        if name not in known and name not in reasons:
            part = _part(pipe, name)
            unknown = f"fera does not know where a LoRA goes in a {type(part).__name__}"
            reasons[name] = unknown if isinstance(part, nn.Module) else "the base has none"
        elif section == "tokens" and name in known and not cast(EncoderKind, kind_of(known[name])).learns_words:
            reasons[name] = f"the vocabulary of a {type(known[name]).__name__} cannot grow"
    able = [name for name in own if name not in reasons]
    if asked is None:
        if not able:
            why = "; ".join(f"{name}: {reasons[name]}" for name in own)
            raise FeraError(
                f"the section {section} is set, but no text encoder of a {pipeline} can be trained: {why}. Leave the "
                "sections text_encoder and tokens out"
            )
        return tuple([name for name in able if kind_of(known[name]) is CLIP] or able)
    for name in asked:
        if name not in own:
            raise FeraError(
                f"{section}.encoders names {name!r}, but a {pipeline} has "
                f"{', '.join(describe_encoder(pipe, one) for one in own)}"
            )
        if name in reasons:
            others = f"; it can train {', '.join(able)}" if able else ""
            raise FeraError(
                f"{section}.encoders names {name!r} of a {pipeline}, which cannot be trained: {reasons[name]}{others}"
            )
    return tuple(name for name in own if name in asked)
