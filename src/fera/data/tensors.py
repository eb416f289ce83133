"""Pictures, clips and masks as tensors."""

from collections.abc import Iterable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fera.data.images import crop_box


def to_tensor(image: Image.Image, size: tuple[int, int], offset: float = 0.5) -> Tensor:
    """Scale a picture until it just covers a size; what sticks out is cropped.

    Args:
        image: RGB.
        size: width W and height H.
        offset: where to crop, 0 (left or top) to 1.

    Returns:
        Shape (3, H, W), float32, in [-1, 1].
    """
    pixels = _covering(image, size, size, offset, Image.Resampling.LANCZOS)
    return pixels.permute(2, 0, 1).contiguous() / 127.5 - 1


def to_image(pixels: Tensor) -> Image.Image:
    """The picture of a tensor as `to_tensor` makes it, RGB."""
    return Image.fromarray(((pixels.permute(1, 2, 0) + 1) * 127.5).round().to(torch.uint8).numpy())


def to_clip(frames: Iterable[Image.Image], size: tuple[int, int], offset: float = 0.5) -> Tensor:
    """As `to_tensor`, frame by frame; one frame is decoded at a time.

    Args:
        frames: F of them, RGB, of one size.
        size: width W and height H.
        offset: where to crop, 0 (left or top) to 1.

    Returns:
        Shape (3, F, H, W), float32, in [-1, 1].
    """
    # Bytes until the end: four times less than numbers.
    pixels = [_covering(image, size, size, offset, Image.Resampling.LANCZOS).byte() for image in frames]
    return torch.stack(pixels).permute(3, 0, 1, 2).float().div_(127.5).sub_(1)


def to_weights(mask: Image.Image, size: tuple[int, int], latent_size: tuple[int, int], offset: float = 0.5) -> Tensor:
    """Scale and crop a mask as `to_tensor` does its picture, down to the size of the latent.

    Args:
        mask: mode "L", of the picture's aspect.
        size: width and height of the picture as trained.
        latent_size: width w and height h of its latent.
        offset: as `to_tensor`.

    Returns:
        Shape (1, h, w), float32, in [0, 1]: each latent pixel has the mean of the mask's pixels under it.
    """
    return _covering(mask, size, latent_size, offset, Image.Resampling.BOX)[None] / 255


def _covering(
    image: Image.Image, shape: tuple[int, int], size: tuple[int, int], offset: float, filter_: Image.Resampling
) -> Tensor:
    """The part of an image with the aspect of `shape`, scaled to `size`; shape (H, W) or (H, W, channels)."""
    # Scaled from this box at once: a long, thin picture would become huge if it were scaled first.
    left, top, width, height = crop_box(image.size, shape, offset)
    if (width, height) != size:
        image = image.resize(size, filter_, box=(left, top, left + width, top + height))
    elif image.size != size:
        left, top = round(left), round(top)
        image = image.crop((left, top, left + size[0], top + size[1]))
    return torch.from_numpy(np.asarray(image, dtype=np.float32).copy())
