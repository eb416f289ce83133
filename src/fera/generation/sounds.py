"""Sounds into files: wav, with how they were made in it."""

import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from fera.data.sounds.sound import Waveform
from fera.errors import FeraError
from fera.support.files import replace_file
from fera.version import __version__


def save_sound(sound: Waveform, path: Path, metadata: Mapping[str, object] | None = None) -> None:
    """Save a sound as wav (PCM of 16 bits), with how it was made in its comment (INFO, ICMT).

    Args:
        sound: the sound.
        path: the file.
        metadata: names to values, such as prompt and seed; fera's version is added.

    Raises:
        FeraError: PyAV is missing.
        OSError: the file cannot be written.
    """
    about = {name: str(value) for name, value in {**(metadata or {}), "fera": __version__}.items()}
    comment = json.dumps(about, ensure_ascii=False)
    replace_file(path, lambda file: _encode(sound, file, "wav", "pcm_s16le", "s16", {"comment": comment}))


def small_sound(sound: Waveform) -> bytes:
    """A sound as mp3, to be heard within a page.

    Raises:
        FeraError: PyAV is missing.
    """
    held = BytesIO()
    # What MPEG has no rate for is brought to one that it has.
    _encode(sound, held, "mp3", "mp3", "s16p", {}, rate=44100, bit_rate=128_000)
    return held.getvalue()


def read_about(path: Path) -> dict[str, str]:
    """How a sound that `save_sound` wrote was made; empty where the file does not say so."""
    av = _package()
    try:
        with av.open(str(path), options={"format_whitelist": "wav", "protocol_whitelist": "file"}) as container:
            about = json.loads(container.metadata.get("comment", "{}"))
    except (av.error.FFmpegError, OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in about.items()} if isinstance(about, dict) else {}


def _encode(
    sound: Waveform,
    file: Path | BytesIO,
    container_format: str,
    codec: str,
    sample_format: str,
    metadata: Mapping[str, str],
    rate: int | None = None,
    bit_rate: int | None = None,
) -> None:
    av = _package()
    layout = "mono" if sound.samples.shape[0] == 1 else "stereo"
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(sound.samples.clip(-1, 1), dtype=np.float32), "fltp", layout
    )
    frame.sample_rate = sound.rate
    resampler = av.AudioResampler(format=sample_format, layout=layout, rate=rate or sound.rate)
    with av.open(str(file) if isinstance(file, Path) else file, "w", format=container_format) as container:
        container.metadata.update(metadata)
        stream = container.add_stream(codec, rate=rate or sound.rate, layout=layout)
        if bit_rate is not None:
            stream.bit_rate = bit_rate
        for part in [*resampler.resample(frame), *resampler.resample(None), None]:
            for packet in stream.encode(part):
                container.mux(packet)


def _package() -> Any:
    try:
        import av
    except ImportError as error:
        raise FeraError(f"sounds need PyAV ({error}): pip install 'fera[sound]'") from None
    return av
