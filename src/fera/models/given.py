"""Frames of a clip that a base is given, and draws the others from: image to video.

They are the sources of a clip (`pairs`): its first frame, of some bases the last one too. Where the latent's first
frame is the given one, training's latents are those of the other frames alone, as the pipeline's scheduler has them.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from fera.models.latents import AS_THEY_ARE
from fera.models.pairs import GivenFrames, Pairs, Size
from fera.models.video import encoded_clip


def given(
    latents: Callable[[Any, Sequence[Tensor], int], Tensor],
    *,
    last: str = "",
    least: int = 1,
    see: Callable[[Any, Sequence[Any], torch.device], dict[str, Tensor]] | None = None,
    eyes: tuple[str, ...] = (),
    encode: Callable[[Any, list[str], Sequence[Any], torch.device], dict[str, Tensor]] | None = None,
) -> Pairs:
    """How a pipeline is given frames, as its `image`.

    Args:
        latents: as in `GivenFrames`.
        last: its argument for the last frame; empty where it takes none.
        least: 2 where it has to be given both.
        see: as in `Pairs`, and so what follows.
        eyes: parts that see.
        encode: where text encoders see the frames.
    """

    def arguments(sources: Sequence[Any], mask: Any, size: Size | None) -> dict[str, Any]:
        return dict(zip(("image", last), sources, strict=False))

    return Pairs(
        arguments,
        least=least,
        most=2 if last else 1,
        units=lambda vae: AS_THEY_ARE,
        encode=encode,
        see=see,
        eyes=eyes,
        frames=GivenFrames(latents),
    )


def between(frames: Sequence[Tensor], count: int) -> Tensor:
    """A clip (B, 3, F, H, W) of the given frames, and zeros, which are grey, in the place of the others.

    Args:
        frames: the first, and maybe the last, each (B, 3, H, W).
        count: F.
    """
    first, *last = (frame[:, :, None] for frame in frames)
    missing = first.new_zeros(*first.shape[:2], count - len(frames), *first.shape[3:])
    return torch.cat([first, missing, *last], dim=2)


def first_latent(vae: Any, frames: Sequence[Tensor]) -> Tensor:
    """The first frame's latent in the autoencoder's own units, shape (B, C, 1, h, w), float32."""
    return encoded_clip(vae, frames[0])
