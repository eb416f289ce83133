"""The judge's pictures: the seven emoji sets, paired by concept, and how they are varied in training."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

sys.path.insert(0, str(Path(__file__).parents[1] / "emoji"))
import sets  # noqa: E402

STYLES = tuple(entry.name for entry in sets.SETS)


@dataclass(frozen=True)
class Pictures:
    """Pictures of some splits.

    Attributes:
        images: shape (N, 3, 64, 64), uint8.
        styles: index in `STYLES` of each, shape (N,), int64.
        names: name of each one's concept.
    """

    images: Tensor
    styles: Tensor
    names: list[str]

    def by_concept(self) -> dict[str, list[int]]:
        """Rows of each concept's pictures, one a style that draws it."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.names):
            rows.setdefault(name, []).append(row)
        return rows


def load_pictures(work: Path, splits: Collection[str]) -> Pictures:
    """Read every set's pictures of some splits, rendering a set first where that was not done yet.

    Args:
        work: the work folder of `scripts/emoji`.
        splits: of "train", "validation", "test".
    """
    images, styles, names = [], [], []
    for style, entry in enumerate(sets.SETS):
        drawn, pixels = sets.load(entry, work)
        rows = [row for row, name in enumerate(drawn) if sets.split_of(name) in splits]
        images.append(pixels[rows])
        styles += [style] * len(rows)
        names += [drawn[row] for row in rows]
    stacked = torch.from_numpy(np.concatenate(images)).permute(0, 3, 1, 2).contiguous()
    return Pictures(stacked, torch.tensor(styles), names)


def vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move, turn, scale, blur and stain pictures a little.

    A drawing by a diffusion model sits elsewhere, is softer and less clean than one by an artist; none of that is its
    style or its concept. Colours are left nearly as they are: they are part of both.

    Args:
        images: shape (B, 3, 64, 64), uint8.
        generator: of the draws.

    Returns:
        Shape (B, 3, 64, 64), float32, in [-1, 1].
    """
    count = len(images)
    # White is 0 here, so that what moves in from outside is the page.
    pages = images.float() / 127.5 - 2

    def draw(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape, generator=generator) * (high - low) + low

    angle, scale = draw(-math.pi / 15, math.pi / 15), draw(0.85, 1.15)
    matrix = torch.stack([angle.cos() * scale, -angle.sin() * scale, angle.sin() * scale, angle.cos() * scale], dim=1)
    placement = torch.cat([matrix.view(count, 2, 2), draw(-0.12, 0.12, 2, 1)], dim=2)
    grid = functional.affine_grid(placement, list(images.shape), align_corners=False)
    pages = functional.grid_sample(pages, grid, align_corners=False)
    softness = draw(-0.6, 1.0, 1, 1, 1).clamp(min=0)
    pages = pages + softness * (functional.avg_pool2d(pages, 3, 1, 1) - pages)
    pages = pages * draw(0.85, 1.1, 3, 1, 1)
    stain = torch.randn(pages.shape, generator=generator) * draw(-0.1, 0.12, 1, 1, 1).clamp(min=0)
    return (pages + 1 + stain).clamp(-1, 1)


def plain(images: Tensor) -> Tensor:
    """Pictures as they are: uint8 (B, 3, 64, 64) to float32 in [-1, 1]."""
    return images.float() / 127.5 - 1
