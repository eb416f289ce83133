"""Pictures inside the page, as data URIs."""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, features

from fera.data.clips.reading import preview
from fera.data.images import load_image
from fera.data.picture_formats import SOUND_SUFFIXES
from fera.data.sounds.reading import beginning
from fera.data.sounds.sound import Waveform
from fera.data.sounds.spectrogram import spectrogram
from fera.errors import FeraError
from fera.generation.clips import contact_sheet
from fera.generation.sounds import small_sound

_QUALITY = 88
# Of a clip.
_FRAMES = 4
# Of a sound.
_SECONDS = 30.0


@dataclass(frozen=True)
class Picture:
    """A picture as it lies in the page.

    Args:
        uri: the data URI.
        width: in pixels.
        height: in pixels.
        alt: what it shows, in words.
        sounds: what it is a picture of, by their names, as data URIs too; most pictures are of none.
    """

    uri: str
    width: int
    height: int
    alt: str
    sounds: tuple[tuple[str, str], ...] = ()


def embed(image: Image.Image, alt: str, most: int) -> Picture:
    """Make a picture a part of the page: WebP, or PNG where Pillow lacks WebP.

    Args:
        image: any mode that converts to RGB.
        alt: what it shows, in words.
        most: longest side in pixels; a larger picture is reduced.
    """
    image = image.convert("RGB")
    if max(image.size) > most:
        image = image.copy()
        image.thumbnail((most, most), Image.Resampling.LANCZOS)
    kind = "webp" if features.check("webp") else "png"
    buffer = io.BytesIO()
    if kind == "webp":
        image.save(buffer, "WEBP", quality=_QUALITY)
    else:
        image.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    return Picture(f"data:image/{kind};base64,{data}", image.width, image.height, alt)


def embed_file(path: Path, alt: str, most: int) -> Picture:
    """As `embed`, from a file; of a clip, some of its frames; of a sound, its spectrogram, and the sound.

    Raises:
        ValueError: it cannot be read; the message says which file and why.
    """
    try:
        if path.suffix.lower() in SOUND_SUFFIXES:
            sound = beginning(path, _SECONDS)
            return replace(embed(spectrogram(sound), alt, most), sounds=((alt, _heard(sound)),))
        frames = preview(path, _FRAMES)
        return embed(contact_sheet(frames) if frames else load_image(path), alt, most)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name} {error}") from error


def with_sounds(picture: Picture, files: Mapping[str, Path]) -> Picture:
    """A picture with sounds to it.

    Args:
        picture: spectrograms, say.
        files: by what they are called.

    Raises:
        ValueError: one cannot be read; the message says which file and why.
    """
    heard = []
    for name, path in files.items():
        try:
            heard.append((name, _heard(beginning(path, _SECONDS))))
        except (ValueError, OSError, FeraError) as error:
            raise ValueError(f"{path.name} {error}") from error
    return replace(picture, sounds=tuple(heard))


def _heard(sound: Waveform) -> str:
    return f"data:audio/mpeg;base64,{base64.b64encode(small_sound(sound)).decode('ascii')}"
