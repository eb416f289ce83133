"""What a check of the data says of sounds."""

from collections.abc import Sequence

from fera.data.example import Example
from fera.preflight.report import SoundReport


def sound_report(example: Example) -> SoundReport | None:
    """What becomes of a sound; None of a picture or a clip."""
    sound, excerpt = example.sound, example.excerpt
    if sound is None:
        return None
    return SoundReport(
        seconds=round(sound.seconds, 3),
        rate=sound.rate,
        channels=sound.channels,
        codec=sound.codec,
        trained_seconds=None if excerpt is None else round(excerpt.kept, 3),
        length=None if excerpt is None else round(excerpt.samples / excerpt.rate, 3),
        trained_rate=None if excerpt is None else excerpt.rate,
        trained_channels=None if excerpt is None else excerpt.channels,
    )


def describe_sounds(sounds: Sequence[SoundReport]) -> str:
    """How many sounds there are, how long, of which rates and channels: "3, 1 to 5 s, 44100 Hz, 2 channels"."""
    lengths = [sound.seconds for sound in sounds]
    parts = [str(len(sounds)), f"{_range(lengths)} s", f"{_range([sound.rate for sound in sounds])} Hz"]
    channels = _range([sound.channels for sound in sounds])
    return ", ".join([*parts, f"{channels} channel{'' if channels == '1' else 's'}"])


def describe_sound(sound: SoundReport) -> str:
    """One sound, and what becomes of it, in words."""
    words = f"{sound.seconds:.3g} s, {sound.rate} Hz, {channels_in_words(sound.channels)}, {sound.codec}"
    if sound.trained_seconds is None or sound.length is None:
        return words
    silence = sound.length - sound.trained_seconds
    parts = [
        f"its first {sound.trained_seconds:.3g} s" if sound.seconds - sound.trained_seconds > 0.05 else "all of it"
    ]
    if silence > 0.05:
        parts.append(f"{silence:.3g} s of silence")
    if sound.trained_rate is not None and sound.trained_rate != sound.rate:
        parts.append(f"at {sound.trained_rate} Hz")
    if sound.trained_channels is not None and sound.trained_channels != sound.channels:
        parts.append(f"made {channels_in_words(sound.trained_channels)}")
    return f"{words}: {', '.join(parts)}"


def channels_in_words(count: int) -> str:
    """How many channels a sound has."""
    return {1: "mono", 2: "stereo"}.get(count, f"{count} channels")


def _range(values: Sequence[float]) -> str:
    least, most = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in (min(values), max(values)))
    return least if least == most else f"{least} to {most}"
