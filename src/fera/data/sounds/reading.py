"""Sounds, by PyAV: FFmpeg's readers of a few containers, and its resampler."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from fera.data.sounds.sound import Excerpt, Samples, Sound, Waveform
from fera.data.streams import first_stream
from fera.support.files import file_digest

_CONTAINERS = "wav,w64,aiff,flac,mp3,ogg,mov,mp4,m4a,3gp,3g2,mj2,aac,matroska,webm"
# Seconds by which a file may be off in what it says of its length: codecs pad the last frame.
_TOLERANCE = 0.2
_MOST_CHANNELS = 64


def look_at(path: Path) -> tuple[Sound, str]:
    """Look at a sound: all of its packets, of which only the first are decoded.

    Returns:
        What it is, and the SHA-256 of the file.

    Raises:
        ValueError: it is empty, damaged, cut off, of zero length, or holds no sound. The message does not name it.
        FileNotFoundError: there is no such file.
    """
    with first_stream(path, "sound", _CONTAINERS) as (container, stream):
        said = _said_seconds(container, stream, path)
        length, is_cut = 0.0, False
        for packet in container.demux(stream):
            if packet.size:
                length += float((packet.duration or 0) * packet.time_base)
                is_cut |= packet.is_corrupt
        rate, channels = int(stream.codec_context.sample_rate), int(stream.codec_context.channels)
        codec = str(stream.codec_context.name)
    first = next(_frames(path), None)
    if first is None or length <= 0:
        raise ValueError("has zero length: there is no sound in it")
    if is_cut or said > length + _TOLERANCE:
        of = f" of {said:.3g}" if said > length else ""
        raise ValueError(f"has a broken end: it breaks off after {length:.3g} s{of}")
    if not 1 <= channels <= _MOST_CHANNELS or rate < 1:
        raise ValueError(f"has {channels} channels at {rate} samples a second, which is no sound that can be read")
    return Sound(length, rate, channels, codec), file_digest(path)


def samples_of(path: Path, excerpt: Excerpt) -> Samples:
    """Decode the beginning of a sound, at another rate and with other channels where the excerpt has others.

    Args:
        path: the sound.
        excerpt: what of it.

    Returns:
        Shape (channels, samples), float32, in [-1, 1]; silence behind a sound that is shorter.

    Raises:
        ValueError: it cannot be read; the message does not name it.
    """
    wanted = min(excerpt.samples, round(excerpt.kept * excerpt.rate))
    samples = np.zeros((excerpt.channels, excerpt.samples), dtype=np.float32)
    done = 0
    for part in _resampled(path, excerpt.rate, excerpt.channels):
        count = min(part.shape[1], wanted - done)
        samples[:, done : done + count] = part[:, :count]
        done += count
        if done == wanted:
            break
    if done == 0:
        raise ValueError("has no sound that can be decoded")
    return samples.clip(-1, 1)


def beginning(path: Path, seconds: float) -> Waveform:
    """The beginning of a sound, of one or two channels.

    Args:
        path: the sound.
        seconds: how much of it at most.

    Raises:
        ValueError: as `look_at`.
        FileNotFoundError: likewise.
    """
    found, _ = look_at(path)
    length = min(seconds, found.seconds)
    excerpt = Excerpt(max(1, round(length * found.rate)), found.rate, min(2, found.channels), length, length)
    return Waveform(samples_of(path, excerpt), found.rate)


def _resampled(path: Path, rate: int, channels: int) -> Iterator[Any]:
    """Arrays (channels, n), float32.

    Of two channels one is made by their mean, and of one two by a copy: FFmpeg would change the loudness. It mixes what
    has more than two down to two.
    """
    from av.audio.resampler import AudioResampler

    resampler = None
    for frame in _frames(path):
        if resampler is None:
            layout = "stereo" if len(frame.layout.channels) > 2 else frame.layout.name
            resampler = AudioResampler(format="fltp", layout=layout, rate=rate)
        frame.pts = None  # gaps in what a file says of times are no silence
        for part in resampler.resample(frame):
            yield _mixed(part.to_ndarray(), channels)
    if resampler is not None:
        for part in resampler.resample(None):
            yield _mixed(part.to_ndarray(), channels)


def _mixed(samples: Any, channels: int) -> Any:
    if len(samples) == channels:
        return samples
    return samples.mean(axis=0, keepdims=True) if channels == 1 else samples.repeat(2, axis=0)


def _frames(path: Path) -> Iterator[Any]:
    with first_stream(path, "sound", _CONTAINERS) as (container, stream):
        yield from container.decode(stream)


def _said_seconds(container: Any, stream: Any, path: Path) -> float:
    """How long a file says that it is; 0 where it says nothing, or FFmpeg guesses by the file's size."""
    if container.format.name == "wav":
        return _said_by_wav(path, int(stream.codec_context.sample_rate))
    if container.format.name in ("aac", "aiff", "w64") or container.format.name == "mp3" and not stream.frames:
        return 0.0
    if stream.duration is not None:
        return float(stream.duration * stream.time_base)
    return 0.0


def _said_by_wav(path: Path, rate: int) -> float:
    """By the size of the chunk of samples: FFmpeg takes what is there."""
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] != b"WAVE":
            return 0.0
        bytes_a_second = 0
        while len(chunk := file.read(8)) == 8:
            name, size = chunk[:4], int.from_bytes(chunk[4:], "little")
            if name == b"data":
                is_open = size in (0, 0xFFFFFFFF)  # written by a program that could not go back
                return 0.0 if is_open or not bytes_a_second else size / bytes_a_second
            content = file.read(min(size + size % 2, 2**16)) if size <= 2**16 else b""
            if not content:
                file.seek(size + size % 2, 1)
            elif name == b"fmt ":
                bytes_a_second = int.from_bytes(content[8:12], "little")
    return 0.0
