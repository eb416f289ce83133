"""From a picture's file to a tensor, with Pillow alone. Pictures may come from strangers: sizes are checked first."""

import struct
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fera.data.colours import NOTE, to_srgb
from fera.data.picture_formats import CONVERT, FORMATS, JPEG_XL, formats_of, jxl_size, kind_of
from fera.errors import reason_of

MAX_PIXELS = 89_478_485  # Pillow's own limit of what is safe, a quarter of a gigabyte in RGB
MAX_SIDE = 32_768

# Several threads read pictures: only one of them holds a large one.
_LARGE_PIXELS = 16_000_000
_one_large = threading.Lock()

# Pillow's readers fail in many ways on a damaged file, but in none that a typing error in a program has.
_DAMAGE = (
    *(OSError, ValueError, SyntaxError, EOFError, LookupError, ArithmeticError, RuntimeError),
    *(struct.error, zlib.error),
)

_T = TypeVar("_T")


def load_image(path: Path) -> Image.Image:
    """Read a picture: upright by its EXIF orientation, sRGB by its colour profile, transparency on white, first frame.

    Returns:
        Mode "RGB". Its `info["colours"]` says in words what was done about its colours, if it was anything.

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
    """Brightness of a picture, upright, mode "L", transparency on black; of numbers as they are, by no profile.

    Raises:
        ValueError: as `load_image`.
    """

    def gray(image: Image.Image) -> Image.Image:
        return _on_ground(_eight_bits(image), "black").convert("L")

    return _read(path, gray)


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


def load_frames(path: Path) -> Iterator[tuple[float, Image.Image]]:
    """Read a picture frame by frame, each as `load_image` reads the first; a still picture has one.

    Yields:
        How long a frame is shown in seconds, as the file says (0 where it says nothing), and the frame.

    Raises:
        ValueError: as `load_image`.
    """
    with _opened(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            with _faults_of_the_file():
                image.seek(number)
                image.load()
                frame = ImageOps.exif_transpose(image.copy())
            yield image.info.get("duration", 0) / 1000, _to_rgb(frame)


def _read(path: Path, convert: Callable[[Image.Image], _T]) -> _T:
    with _opened(path) as image, _one_large if image.width * image.height > _LARGE_PIXELS else nullcontext():
        with _faults_of_the_file():
            upright = image if _is_upright(image) else ImageOps.exif_transpose(image)
            upright.load()
        return convert(upright)


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """A picture's file, its size looked at, its pixels not yet decoded."""
    if path.stat().st_size == 0:
        raise ValueError("is empty (0 bytes)")
    with path.open("rb") as file:
        kind = kind_of(file.read(64))
    formats = formats_of(kind)
    if kind is JPEG_XL and (size := jxl_size(path.read_bytes())) is not None:
        check_size(*size)
    with _faults_of_the_file():
        opened = Image.open(path, formats=formats)
    with opened as image:
        check_size(*image.size)
        yield image


def check_size(width: int, height: int) -> None:
    """Refuse a picture that would take too much memory, by its sides in pixels.

    Raises:
        ValueError: it is too large.
    """
    if max(width, height) > MAX_SIDE or width * height > min(MAX_PIXELS, Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
        raise ValueError(f"is too large ({width} x {height} pixels); scale it down")


def _is_upright(image: Image.Image) -> bool:
    # In JPEG XL the codestream says how to turn a picture, and its decoder has done so. What EXIF says counts in a JPEG
    # that was packed into it, which Pillow decodes.
    return image.format == JPEG_XL.format and not getattr(image, "jpeg", False)


@contextmanager
def _faults_of_the_file() -> Iterator[None]:
    """What Pillow's readers raise on a damaged file, in words. Anything else is an error of a program, and passes."""
    try:
        yield
    except UnidentifiedImageError:
        raise ValueError(f"is no picture that can be read (fera reads {', '.join(FORMATS)}); {CONVERT}") from None
    except Image.DecompressionBombError:
        raise ValueError("is too large; scale it down") from None
    except _DAMAGE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the system's: no permission, a broken disk
            raise ValueError(f"cannot be read ({error.strerror})") from error
        raise ValueError(f"is damaged ({reason_of(error)})") from None


def _to_rgb(image: Image.Image) -> Image.Image:
    profile = image.info.get("icc_profile")
    return _on_ground(to_srgb(_eight_bits(image), profile), "white")


def _eight_bits(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # 16 bits a channel: plain conversion would clip nearly everything to white.
        image = Image.fromarray((np.asarray(image).astype(np.float64) / 257).clip(0, 255).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("has floating point pixels, whose range is unknown; save it with 8 bits a channel")
    return image


def _on_ground(image: Image.Image, ground: str) -> Image.Image:
    """RGB, with a colour where the image is transparent."""
    if image.has_transparency_data:
        note = image.info.get(NOTE)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image)
        if note is not None:
            image.info[NOTE] = note
    return image.convert("RGB")
