"""Small sounds, made on the fly."""

from pathlib import Path

import av
import numpy as np

CODECS = {
    ".wav": "pcm_s16le",
    ".flac": "flac",
    ".mp3": "mp3",
    ".ogg": "libopus",
    ".opus": "libopus",
    ".m4a": "aac",
    ".aiff": "pcm_s16be",
}


def tone(seconds: float, rate: int, channels: int = 1, hertz: float = 440.0) -> np.ndarray:
    """Half as loud as can be; the second channel an octave higher. Shape (channels, N), float32."""
    time = np.arange(round(seconds * rate)) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * hertz * 2**channel * time) for channel in range(channels)]).astype("f4")


def write_sound(path: Path, seconds: float = 1.0, rate: int = 16000, channels: int = 1, hertz: float = 440.0) -> Path:
    """A `tone`; the ending says how it is coded."""
    layout = "mono" if channels == 1 else "stereo"
    with av.open(str(path), "w") as container:
        stream = container.add_stream(CODECS[path.suffix], rate=48000 if "opus" in CODECS[path.suffix] else rate)
        stream.layout = layout
        samples = tone(seconds, rate, channels, hertz)
        if samples.shape[1]:
            frame = av.AudioFrame.from_ndarray(samples, "fltp", layout)
            frame.sample_rate = rate
            resampler = av.AudioResampler(stream.format, layout, stream.rate, stream.frame_size or None)
            for part in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return path


def sound_folder(folder: Path, rate: int = 16000, seconds: float = 1.0) -> Path:
    """Sounds of three kinds, each with its caption; the last one is short and stereo."""
    folder.mkdir()
    write_sound(folder / "a.wav", seconds, rate)
    write_sound(folder / "b.flac", 1.5 * seconds, rate, hertz=300)
    write_sound(folder / "c.mp3", seconds, 16000, hertz=200) if rate == 16000 else write_sound(
        folder / "c.wav", seconds, rate, hertz=200
    )
    write_sound(folder / "d.wav", 0.5 * seconds, rate, channels=2)
    for name, caption in zip("abcd", ["a red rocket", "a green tree", "a blue house", "the sun"], strict=True):
        (folder / f"{name}.txt").write_text(caption)
    return folder
