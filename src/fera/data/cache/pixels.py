"""Pictures, masks, frames and sounds as the autoencoder is to see them: brought to their size, cropped, mirrored."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from fera.data.buckets import Size
from fera.data.clips.clip import Part
from fera.data.clips.reading import frames_of
from fera.data.example import Example
from fera.data.images import load_image
from fera.data.masks import load_mask
from fera.data.sounds.reading import samples_of
from fera.data.tensors import to_clip, to_image, to_tensor, to_weights
from fera.errors import FeraError

# Pictures that go through the autoencoder together.
_BATCH = 8


@dataclass(frozen=True)
class Picture:
    """A picture to encode: of which example, to which size, cropped where, mirrored or not, and into which entry.

    Where it is `blank`, the example's hole is grey in it. Of a clip, `given` are the frames that are meant, counted
    from 0 among those that are trained on; all where it is empty.
    """

    image: Path
    example: Example
    size: Size
    offset: float
    mirrored: bool
    name: str
    blank: bool
    given: tuple[int, ...] = ()


def chunks(missing: Sequence[Picture]) -> Iterator[list[Picture]]:
    """Pictures to encode together: of one size. Clips and sounds go one at a time, so that one is in memory."""

    def shape(picture: Picture) -> tuple[int, ...]:
        return (picture.example.frames, *picture.size)

    for (frames, *_), pictures in groupby(sorted(missing, key=shape), key=shape):
        same_size = list(pictures)
        count = _BATCH if frames == 1 and same_size[0].example.excerpt is None else 1
        for start in range(0, len(same_size), count):
            yield same_size[start : start + count]


def pixels_of(picture: Picture) -> Tensor:
    """Shape (3, H, W), or (3, F, H, W) of a clip, with F given frames where some are; or (channels, N) of a sound."""
    example = picture.example
    try:
        if example.excerpt is not None:
            return torch.from_numpy(samples_of(example.image, example.excerpt))
        if example.clip is not None and example.part is not None:
            part = example.part
            parts = [Part(part.start + frame, 1, part.frame_rate) for frame in picture.given] or [part]
            frames = (frame for some in parts for frame in frames_of(example.image, example.clip, some))
            pixels = to_clip(frames, picture.size, picture.offset)
        else:
            pixels = to_tensor(load_image(picture.image), picture.size, picture.offset)
    except (ValueError, OSError) as error:
        raise FeraError(f"{example.origin} {error}; it was readable a moment ago") from error
    if picture.blank:
        pixels = pixels * (1 - hole_of(example, picture.size, picture.offset))
    return pixels.flip(-1) if picture.mirrored else pixels


def image_of(picture: Picture) -> Image.Image:
    """A picture as encoders beside the autoencoder see it, or the only frame of a clip that is meant."""
    pixels = pixels_of(picture)
    return to_image(pixels[:, 0] if pixels.ndim == 4 else pixels)


def hole_of(example: Example, size: Size, offset: float) -> Tensor:
    """What is to be painted: 1 where the mask is white, shape (1, H, W)."""
    mask = mask_of(example)
    if mask is None:  # an opaque picture, of those that are their own masks
        return torch.ones(1, *size[::-1])
    return (to_weights(mask, size, size, offset) >= 0.5).float()


def mask_of(example: Example) -> Any:
    """The mask of an example; None where all of it counts."""
    try:
        return load_mask(example)
    except (ValueError, OSError) as error:
        raise FeraError(f"{example.origin} {error}; it was usable a moment ago") from error
