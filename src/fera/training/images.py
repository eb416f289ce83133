"""From a picture's file to a tensor, with Pillow alone."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor


def load_image(path: Path) -> Image.Image:
    """Read a picture: upright by its EXIF orientation, RGB, transparency on white, first frame.

    Raises:
        ValueError: the file is empty, damaged, no picture, or has more pixels than Pillow deems safe. The
            message says which, without the path.
    """
    if path.stat().st_size == 0:
        raise ValueError("is empty (0 bytes)")
    try:
        with Image.open(path) as image:
            width, height = image.size
            if width * height > (Image.MAX_IMAGE_PIXELS or float("inf")):
                raise ValueError(f"is too large ({width} x {height} pixels); scale it down")
            return _to_rgb(ImageOps.exif_transpose(image))
    except (UnidentifiedImageError, Image.DecompressionBombError) as error:
        is_bomb = isinstance(error, Image.DecompressionBombError)
        raise ValueError("is too large; scale it down" if is_bomb else "is no picture that can be read") from None
    except (OSError, SyntaxError) as error:  # Pillow reports damaged PNG chunks as SyntaxError
        raise ValueError(f"is damaged ({error})") from None


def to_tensor(image: Image.Image, size: tuple[int, int], offset: float = 0.5) -> Tensor:
    """Scale a picture until it just covers a size, and crop what sticks out.

    Args:
        image: RGB.
        size: width W and height H.
        offset: where to crop, 0 (left or top) to 1.

    Returns:
        Shape (3, H, W), float32, in [-1, 1].
    """
    scale = max(wanted / side for wanted, side in zip(size, image.size, strict=True))
    width, height = (max(wanted, round(side * scale)) for wanted, side in zip(size, image.size, strict=True))
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.LANCZOS)
    left, top = round((width - size[0]) * offset), round((height - size[1]) * offset)
    image = image.crop((left, top, left + size[0], top + size[1]))
    pixels = torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


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
