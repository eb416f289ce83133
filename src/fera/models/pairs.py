"""Source pictures: what a pipeline that edits or fills is given beside a caption, and where its denoiser gets it.

A source is encoded as the picture that is drawn is, so that its latent lies in the cache in the same way. Among a
denoiser's conditions the sources are `source_0`, `source_1` and so on, (B, C, h, w), and `hole` is 1 where something is
to be painted, (B, 1, H, W) in pixels.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fera.models.latents import LatentUnits

# Width and height in pixels.
Size = tuple[int, int]

# How far the aspects of two pictures of one shape may be apart: sides are rounded when pictures are scaled.
_SAME_SHAPE = 0.02


@dataclass(frozen=True)
class GivenFrames:
    """What a denoiser is told of given frames.

    Args:
        latents: (autoencoder, given frames, each (B, 3, H, W) in [-1, 1], frames of the clip) to what it is told,
            shape (B, C, h, w), with frames as channels: the condition `source_0`.
    """

    latents: Callable[[Any, Sequence[Tensor], int], Tensor]


@dataclass(frozen=True)
class Pairs:
    """How the pipelines of one class are given source pictures.

    Args:
        arguments: (source pictures, the hole's mask or None, size to draw at or None) to arguments of the pipeline;
            where there is a size, the pictures have been brought to theirs.
        least: how many sources it needs at least.
        most: how many it takes.
        size: (a source's size, that of the picture that is trained on, the size which that is brought to) to the size
            at which the source is encoded; None: the source is brought to the same size, and must have its shape.
        hole: whether a mask says what is to be painted; then the source is the picture itself with the hole blank,
            unless there is another.
        units: an autoencoder to how its latents become a source's; None: as they become the denoiser's.
        encode: (pipeline, captions, their sources as pictures, device) to conditions, as `Family.encode`, where text
            encoders see the sources; None where they see captions alone.
        prompt: a prompt and how many sources it has, to the prompt that the pipeline takes with so many, which may have
            to name them; None: as it is.
    """

    arguments: Callable[[Sequence[Any], Any, Size | None], dict[str, Any]]
    least: int = 1
    most: int = 1
    size: Callable[[Size, Size, Size], Size] | None = None
    hole: bool = False
    units: Callable[[Any], LatentUnits] | None = None
    encode: Callable[[Any, list[str], Sequence[Any], torch.device], dict[str, Tensor]] | None = None
    see: Callable[[Any, Sequence[Any], torch.device], dict[str, Tensor]] | None = None
    eyes: tuple[str, ...] = ()
    frames: GivenFrames | None = None
    prompt: Callable[[str, int], str] | None = None


def sources_of(conditions: Mapping[str, Tensor]) -> list[Tensor]:
    """The sources among conditions, in order."""
    names = [name for name in conditions if name.startswith("source_")]
    return [conditions[f"source_{number}"] for number in range(len(names))]


def same_shape(one: Size, other: Size) -> bool:
    """Whether two pictures have the same aspect, but for rounded sides."""
    stretch = one[0] * other[1] / (one[1] * other[0])
    return 1 / (1 + _SAME_SHAPE) <= stretch <= 1 + _SAME_SHAPE


def of_area(size: Size, area: float, multiple: int) -> Size:
    """Sides of about an area and of the aspect of a size, in pixels, each the nearest multiple of a number."""
    aspect = size[0] / size[1]
    width, height = math.sqrt(area * aspect), math.sqrt(area / aspect)
    return max(1, round(width / multiple)) * multiple, max(1, round(height / multiple)) * multiple


def one_picture(sources: Sequence[Any], mask: Any, size: Size | None) -> dict[str, Any]:
    """The call of a pipeline that takes one source."""
    return {"image": sources[0]}


def picture_and_mask(sources: Sequence[Any], mask: Any, size: Size | None) -> dict[str, Any]:
    """The call of a pipeline that fills a hole."""
    return {"image": sources[0], "mask_image": mask}
