"""Sliced Wasserstein distance of patches, level by level of a Laplacian pyramid. It needs no network."""

import torch
from torch import Tensor
from torch.nn import functional

from fera.features.pixels import PixelSet

_PATCH = 7  # side in pixels
_PATCHES = 4096  # of each set and level
_DIRECTIONS = 128
_LEAST_SIDE = 16  # of the coarsest level


def sliced_wasserstein(real: PixelSet, generated: PixelSet, *, seed: int = 0) -> dict[str, float]:
    r"""Distance of two sets of pictures at each scale.

    At each level the same number of 7x7 patches is drawn from both sets. A patch is standardized, channel by channel,
    with mean and deviation of the real patches; then the distance is the mean over random directions u of the
    one-dimensional Wasserstein distance of the patches' projections,

    .. math:: W = \mathbb{E}_{u \in S^{146}} \frac{1}{N} \sum_i |u^\top a_{(i)} - u^\top b_{(i)}|,

    with sorted projections. Patches and directions come from the seed alone. A set has distance 0 to itself; two
    samples of one distribution do not, the less so the fewer pictures there are.

    Args:
        real: at least one picture.
        generated: likewise, of the same size.
        seed: the seed of positions and directions.

    Returns:
        By the level's shorter side in pixels, fine to coarse: "64", "32", "16" for 64x64 pictures. The last one is the
        low-pass remainder. Unit: deviations of the real patches.

    Source:
        Karras et al., arXiv 1710.10196, section 5; Rabin et al., "Wasserstein barycenter and its application to
        texture mixing", 2011. Departs from the first, which standardizes each set by itself: contrast and colour
        would not count.
    """
    distances = {}
    generator = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(_DIRECTIONS, 3 * _PATCH**2, generator=generator), dim=1)
    ours, theirs = _patches(real, seed), _patches(generated, seed)
    for side, patches in ours.items():
        mean = patches.mean(dim=(0, 2), keepdim=True)
        deviation = patches.std(dim=(0, 2), keepdim=True).clamp(min=1e-4)
        # One row a direction: sorting along rows is several times faster than along columns.
        both = [directions @ ((one - mean) / deviation).flatten(1).T for one in (patches, theirs[side])]
        first, second = (projections.sort(dim=1).values for projections in both)
        distances[str(side)] = float((first - second).abs().mean())
    return distances


def _pyramid(pixels: Tensor) -> list[Tensor]:
    """Laplacian pyramid, fine to coarse: what each halving loses, then what is left."""
    levels, finer = [], pixels.float()
    while min(finer.shape[2:]) >= 2 * _LEAST_SIDE:
        coarser = functional.avg_pool2d(_blurred(finer), 2)
        grown = functional.interpolate(coarser, size=finer.shape[2:], mode="bilinear", align_corners=False)
        levels.append(finer - grown)
        finer = coarser
    return [*levels, finer]


def _blurred(pixels: Tensor) -> Tensor:
    """A binomial low-pass, borders replicated."""
    taps = torch.tensor([1.0, 2.0, 1.0]) / 4
    kernel = (taps[:, None] * taps).expand(pixels.shape[1], 1, 3, 3)
    return functional.conv2d(functional.pad(pixels, (1, 1, 1, 1), mode="replicate"), kernel, groups=pixels.shape[1])


def _patches(pictures: PixelSet, seed: int) -> dict[int, Tensor]:
    """Patches at fixed places, evenly from all pictures; by the level's shorter side, each of shape (P, 3, 49)."""
    owner = torch.arange(_PATCHES) * len(pictures) // _PATCHES  # picture of each patch, in their order
    found: dict[int, list[Tensor]] = {}
    before = 0
    for chunk in pictures:
        own = (owner >= before) & (owner < before + len(chunk))
        for level in _pyramid(chunk):
            patches = _cut(level, owner[own] - before, own, seed)
            found.setdefault(min(level.shape[2:]), []).append(patches)
        before += len(chunk)
    return {side: torch.cat(parts) for side, parts in found.items()}


def _cut(level: Tensor, picture: Tensor, own: Tensor, seed: int) -> Tensor:
    """The patches of one chunk; all places are drawn, so that they do not depend on the chunks."""
    generator = torch.Generator().manual_seed(seed)
    height, width = level.shape[2:]
    top = torch.randint(0, height - _PATCH + 1, (_PATCHES, 1, 1), generator=generator)[own]
    left = torch.randint(0, width - _PATCH + 1, (_PATCHES, 1, 1), generator=generator)[own]
    within = torch.arange(_PATCH)
    rows = (top + within[:, None]).expand(-1, _PATCH, _PATCH).flatten(1)
    columns = (left + within).expand(-1, _PATCH, _PATCH).flatten(1)
    return level[picture[:, None], :, rows, columns].transpose(1, 2)
