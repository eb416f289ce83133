"""Pictures inside the page, as data URIs."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, features

from fera.data.clips.reading import preview
from fera.data.images import load_image
from fera.generation.clips import contact_sheet

_QUALITY = 88
# Of a clip.
_FRAMES = 4


@dataclass(frozen=True)
class Picture:
    """A picture as it lies in the page.

    Args:
        uri: the data URI.
        width: in pixels.
        height: in pixels.
        alt: what it shows, in words.
    """

    uri: str
    width: int
    height: int
    alt: str


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
    """As `embed`, from a file; of a clip, some of its frames.

    Raises:
        ValueError: it cannot be read; the message says which file and why.
    """
    try:
        frames = preview(path, _FRAMES)
        return embed(contact_sheet(frames) if frames else load_image(path), alt, most)
    except FileNotFoundError:
        raise ValueError(f"{path.name} is missing") from None
    except (ValueError, OSError) as error:
        raise ValueError(f"{path.name} {error}") from error
