"""Pictures as tensors: what every network and every distance of an evaluation starts from."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fera.data.images import load_image
from fera.data.tensors import to_tensor

_CHUNK_PIXELS = 2**22  # of a chunk: 1024 pictures of 64x64, 16 of 512x512


@dataclass(frozen=True)
class PixelSet:
    """Pictures of one size, as training sees them: scaled until they just cover it, then cropped.

    Iterating gives chunks of shape (n, 3, H, W), float32, in [-1, 1]; a large folder is never in memory as a whole.

    Args:
        images: RGB, or files to read.
        size: width W and height H.
    """

    images: Sequence[Image.Image | Path]
    size: tuple[int, int]

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Tensor]:
        chunk = max(1, _CHUNK_PIXELS // (self.size[0] * self.size[1]))
        for start in range(0, len(self.images), chunk):
            yield torch.stack([self._read(image) for image in self.images[start : start + chunk]])

    def _read(self, image: Image.Image | Path) -> Tensor:
        return to_tensor(load_image(image) if isinstance(image, Path) else image, self.size)


def resized(pixels: Tensor, side: int) -> Tensor:
    """Square pictures of a side, with antialiasing; shape (N, 3, side, side), in [-1, 1]."""
    if tuple(pixels.shape[2:]) == (side, side):
        return pixels
    scaled = functional.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True, align_corners=False)
    return scaled.clamp(-1, 1)
