"""From a picture's file to a tensor, with Pillow alone. Pictures may come from strangers: sizes are checked first."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

# Pillow reads many more, some through other programs; a file's ending does not choose among them.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "AVIF")
MAX_PIXELS = 89_478_485  # Pillow's own limit of what is safe, a quarter of a gigabyte in RGB
MAX_SIDE = 32_768

# Several threads read pictures: only one of them holds a large one.
_LARGE_PIXELS = 16_000_000
_one_large = threading.Lock()

_T = TypeVar("_T")


def load_image(path: Path) -> Image.Image:
    """Read a picture: upright by its EXIF orientation, RGB, transparency on white, first frame.

    Raises:
        ValueError: the file is empty, damaged, no picture of the known formats, or has a side of more than `MAX_SIDE`
            or more than `MAX_PIXELS` pixels. The message says which, without the path.
    """
    return _read(path, _to_rgb)


def load_alpha(path: Path) -> Image.Image | None:
    """Opacity of a picture, upright, mode "L"; None where it has no transparency.

    Raises:
        ValueError: as `load_image`.
    """

    def alpha(image: Image.Image) -> Image.Image | None:
        return image.convert("RGBA").getchannel("A") if image.has_transparency_data else None

    return _read(path, alpha)


def load_gray(path: Path) -> Image.Image:
    """Brightness of a picture, upright, mode "L".

    Raises:
        ValueError: as `load_image`.
    """
    return load_image(path).convert("L")


def crop_box(picture: tuple[int, int], size: tuple[int, int], offset: float = 0.5) -> tuple[float, float, float, float]:
    """The largest part of a picture that has the aspect of a size.

    Args:
        picture: its width and height in pixels.
        size: width and height that it is brought to.
        offset: where to crop along the side that sticks out, 0 (left or top) to 1.

    Returns:
        Left, top, width and height in pixels of the picture.
    """
    scale = max(wanted / side for wanted, side in zip(size, picture, strict=True))
    width, height = (min(side, wanted / scale) for wanted, side in zip(size, picture, strict=True))
    return (picture[0] - width) * offset, (picture[1] - height) * offset, width, height


def _read(path: Path, convert: Callable[[Image.Image], _T]) -> _T:
    if path.stat().st_size == 0:
        raise ValueError("is empty (0 bytes)")
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            if max(width, height) > MAX_SIDE or width * height > min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
                raise ValueError(f"is too large ({width} x {height} pixels); scale it down")
            with _one_large if width * height > _LARGE_PIXELS else nullcontext():
                return convert(ImageOps.exif_transpose(image))
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        is_bomb = isinstance(error, Image.DecompressionBombError)
        raise ValueError("is too large; scale it down" if is_bomb else "is no picture that can be read") from None
    except ValueError as error:
        raise error if str(error).startswith(("is ", "has ")) else ValueError(f"is damaged ({error})") from None
    except Exception as error:  # Pillow's readers fail in many ways on a damaged file
        raise ValueError(f"is damaged ({str(error) or type(error).__name__})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a channel: plain conversion would clip nearly everything to white.
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("has floating point pixels, whose range is unknown; save it with 8 bits a channel")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
