"""Small pictures for lists, made once: they lie in fera's cache, named after the file that they show and its state."""

import hashlib
import threading
from io import BytesIO
from pathlib import Path

from PIL import Image

from fera.data.images import load_image
from fera.data.index import stamp_of
from fera.data.picture_formats import SOUND_SUFFIXES
from fera.data.sounds.reading import beginning
from fera.data.sounds.spectrogram import spectrogram
from fera.errors import FeraError
from fera.support.files import replace_file

SIDE = 192
# Of a sound.
_SECONDS = 30.0


class Thumbs:
    """Thumbnails of pictures.

    Args:
        folder: where they are kept; made when the first is.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # Decoding takes memory: as many at a time as there are for a small machine.
        self._decoding = threading.Semaphore(2)

    def of(self, path: Path, side: int = SIDE) -> bytes:
        """A WebP of a picture, upright, or of a sound's spectrogram.

        Args:
            path: a picture or a sound.
            side: of the longer side, in pixels, at most.

        Raises:
            FeraError: it is gone, or no picture that can be read.
        """
        try:
            stamp = stamp_of(path)
        except OSError:
            raise FeraError(f"{path.name} is gone; reload the page") from None
        kept = self._folder / f"{hashlib.sha256(f'{path}|{stamp}|{side}'.encode()).hexdigest()[:40]}.webp"
        try:
            return kept.read_bytes()
        except OSError:
            pass
        with self._decoding:
            try:
                image = _picture_of(path)
            except (ValueError, OSError) as error:
                raise FeraError(f"{path.name} {error}") from error
            image.thumbnail((side, side))
            image.info.clear()
        small = _encoded(image)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            replace_file(kept, lambda file: file.write_bytes(small))
        except OSError:
            pass  # a full disk: it is made again the next time
        return small


def _picture_of(path: Path) -> Image.Image:
    """A picture, or the spectrogram of a sound."""
    if path.suffix.lower() in SOUND_SUFFIXES:
        return spectrogram(beginning(path, _SECONDS))
    return load_image(path)


def _encoded(image: Image.Image) -> bytes:
    held = BytesIO()
    image.save(held, format="WEBP", quality=80)
    return held.getvalue()
