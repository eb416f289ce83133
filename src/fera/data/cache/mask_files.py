"""Masks in the cache: where the loss counts, or what is to be painted."""

from collections.abc import Sequence
from pathlib import Path

import torch

from fera.data.buckets import Size
from fera.data.cache.pixels import hole_of, mask_of
from fera.data.cache.store import digest, write
from fera.data.example import Example
from fera.data.tensors import to_weights

# Raise when a file of the same name would hold something else.
_VERSION = 3


def mask_files(
    folder: Path,
    examples: Sequence[Example],
    sizes: Sequence[Size],
    offsets: Sequence[float],
    mirrorings: Sequence[bool],
    scale: int | None,
) -> list[list[Path]]:
    """Write the masks of examples that the cache does not hold yet.

    Args:
        folder: the folder of the cache.
        examples: with their digests.
        sizes: width and height in pixels that each is brought to.
        offsets: where each is cropped.
        mirrorings: False for a mask as it is, True for its mirror image.
        scale: pixels a side that become one pixel of the latent, at whose size masks are where the loss counts; None:
            they are holes, in pixels.

    Returns:
        For each example a file a mirroring; nothing where all of it counts.
    """
    factor = scale or 1
    paths: list[list[Path]] = []
    for example, size, offset in zip(examples, sizes, offsets, strict=True):
        latent_size = (size[0] // factor, size[1] // factor)
        depends_on = [_VERSION, example.digest, example.mask_digest, size, latent_size, offset]
        depends_on += ["hole"] if scale is None else []
        files = [folder / f"mask-{digest([*depends_on, mirrored])}.safetensors" for mirrored in mirrorings]
        paths.append(files if example.mask else [])
        if not all(path.exists() for path in paths[-1]):
            if scale is None:
                weight = hole_of(example, size, offset)
            elif (mask := mask_of(example)) is not None:
                weight = to_weights(mask, size, latent_size, offset)
            else:
                weight = torch.ones(1, *latent_size[::-1])
            for path, mirrored in zip(files, mirrorings, strict=True):
                write(path, {"weight": weight.flip(-1) if mirrored else weight})
    return paths
