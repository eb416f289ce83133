"""Masks as the loss takes them, at the size of the latents, and holes, in pixels."""

from collections.abc import Sequence

import torch

from fera.data.buckets import Size
from fera.data.cache.cache import Cache
from fera.data.cache.framing import Framing
from fera.data.cache.pixels import hole_of, mask_of
from fera.data.cache.share import Share
from fera.data.cache.store import digest
from fera.data.checking import Example
from fera.data.tensors import to_weights

# Raise when an entry of the same name would hold something else.
_VERSION = 3


def encode_masks(
    examples: Sequence[Example],
    sizes: Sequence[Size],
    cache: Cache,
    share: Share,
    framing: Framing,
    *,
    factor: int,
    is_hole: bool = False,
) -> list[list[str]]:
    """Scale masks that a cache does not hold.

    Args:
        examples: with masks or without.
        sizes: width and height that each is brought to, in pixels.
        cache: where they go.
        share: which of them are this process's.
        framing: how pictures are cropped.
        factor: pixels to a latent; 1 of holes.
        is_hole: whether they are holes.

    Returns:
        Of each example its entry, and that of its mirror image; nothing where all of it counts.

    Raises:
        FeraError: a mask cannot be read any more, or the cache not written.
    """
    entries: list[list[str]] = []
    with cache.writer("mask") as writer:
        for example, size in zip(examples, sizes, strict=True):
            offset = framing.offset(example)
            latent_size = (size[0] // factor, size[1] // factor)
            depends_on = [_VERSION, example.digest, example.mask_digest, size, latent_size, offset]
            depends_on += ["hole"] if is_hole else []
            names = [f"mask-{digest([*depends_on, mirrored])}" for mirrored in framing.mirrorings]
            entries.append(names if example.mask else [])
            if not any(share.holds(name) for name in cache.missing(entries[-1])):
                continue
            if is_hole:
                weight = hole_of(example, size, offset)
            elif (mask := mask_of(example)) is not None:
                weight = to_weights(mask, size, latent_size, offset)
            else:
                weight = torch.ones(1, *latent_size[::-1])
            for name, mirrored in zip(names, framing.mirrorings, strict=True):
                writer.add(name, {"weight": weight.flip(-1) if mirrored else weight})
    return entries
