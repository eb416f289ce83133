"""What of each sound is trained on, once the base is known."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from fera.config import DataConfig
from fera.data.example import Example, some_of
from fera.data.sounds.sound import Excerpt
from fera.errors import FeraError

if TYPE_CHECKING:  # a check without a base does without PyTorch
    from fera.models.sound import Sound as SoundBase


def sound_lengths(config: DataConfig, sound: "SoundBase | None", pipeline: str) -> list[float]:
    """Lengths in seconds to train at, from the shortest on.

    Args:
        config: the section of the data.
        sound: what the base is made for; None of a base of pictures or videos.
        pipeline: the class of the base's pipeline, for messages.

    Raises:
        FeraError: the base makes no sound, or none so long; or it does, and no length is set.
    """
    if sound is None:
        raise FeraError(
            f"data.seconds is set, but {pipeline} makes no sound: leave data.seconds out, or take a base of sound"
        )
    lengths = sorted(config.seconds)
    if not lengths:
        raise FeraError(f"{pipeline} makes sound: set data.seconds to the length in seconds to train at")
    if lengths[-1] > sound.longest + 1e-6:
        raise FeraError(f"data.seconds is {lengths[-1]:g}, but this base makes {sound.longest:.4g} s at most")
    if sound.frames(lengths[0]) < 2:
        least = 2 * sound.stride / sound.rate
        raise FeraError(f"data.seconds is {lengths[0]:g}, too short for this base: its latent needs {least:.3g} s")
    return lengths


def fit_sounds(examples: Sequence[Example], lengths: Sequence[float], sound: "SoundBase") -> list[Example]:
    """Settle what of each sound is trained on: its beginning, by the longest length that it fills.

    One that fills none is taken whole, with silence behind it.

    Args:
        examples: as `check_images` gives them.
        lengths: in seconds, from the shortest on.
        sound: what the base is made for.
    """
    return [_fit(example, lengths, sound) for example in examples]


def describe_lengths(examples: Sequence[Example], batch_size: int) -> list[str]:
    """A line about each length that is trained at: "10 s: 5 sounds, 2 batches, the last of 1"."""
    lines = []
    for (samples, rate), count in sorted(Counter(map(_length, examples)).items()):
        batches, rest = math.ceil(count / batch_size), count % batch_size
        incomplete = f", the last of {rest}" if rest else ""
        lines.append(
            f"{samples / rate:.4g} s: {count} sound{'' if count == 1 else 's'}, "
            f"{batches} batch{'' if batches == 1 else 'es'}{incomplete}"
        )
    return lines


def describe_fitting(examples: Sequence[Example]) -> list[str]:
    """Lines about sounds that are cut, have silence behind them, or are brought to other rates or channels."""
    lines = []
    for words, changes in (
        ("are cut to their beginning", lambda e: e.sound.seconds > e.excerpt.kept + 0.05),
        ("have silence behind them", lambda e: e.excerpt.kept < e.excerpt.samples / e.excerpt.rate - 0.05),
        ("are brought to another rate", lambda e: e.sound.rate != e.excerpt.rate),
        ("are brought to other channels", lambda e: e.sound.channels != e.excerpt.channels),
    ):
        if names := [example.name for example in examples if changes(example)]:
            lines.append(f"{len(names)} of {len(examples)} sounds {words}: {some_of(names)}")
    return lines


def _length(example: Example) -> tuple[int, int]:
    assert example.excerpt is not None
    return example.excerpt.samples, example.excerpt.rate


def _fit(example: Example, lengths: Sequence[float], sound: "SoundBase") -> Example:
    assert example.sound is not None
    there = example.sound.seconds
    length = max((one for one in lengths if one <= there + 1e-3), default=lengths[0])
    kept = min(there, length)
    told = round(kept, 3) if sound.told else length
    return replace(example, excerpt=Excerpt(sound.samples(length), sound.rate, sound.channels, kept, told))
