"""How the denoisers of a family lay out their latent, and how to see it as (B, C, H, W).

Each function takes the denoiser, the latent argument and all arguments of the call by name. What a pipeline appends to
the latent as a condition (a mask, a reference image, its tokens) must not steer the gate and is left out.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fera.errors import FeraError

Arguments = Mapping[str, Any]

# Sizes that were read off position ids: reading them waits for the device, and a pipeline passes the same tensor at
# every step.
_SIZES = WeakTensorKeyDictionary()


def own_channels(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, C, H, W), to which inpainting and edit variants append the channels of their conditions."""
    config: Any = denoiser.config
    return latent[:, : min(config.in_channels, config.out_channels)]


def packed_by_ids(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, L, 4 C), 2 x 2 pixels a token, whose places are rows of `img_ids`: (image, row, column).

    Kontext appends the tokens of reference images, whose first id is not 0; Fill appends channels.
    """
    config: Any = denoiser.config
    height, width = size_from_ids(denoiser, arguments, "img_ids")
    return unpack(latent[:, : height * width, : config.out_channels or config.in_channels], height, width)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Tokens of 2 x 2 pixels, (B, h w, 4 C), as the picture they were cut from, (B, C, 2 h, 2 w)."""
    batch, _, features = tokens.shape
    blocks = tokens.reshape(batch, height, width, features // 4, 2, 2)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(batch, features // 4, 2 * height, 2 * width)


def size_from_ids(denoiser: nn.Module, arguments: Arguments, name: str) -> tuple[int, int]:
    """Height and width in tokens of the picture being drawn, from position ids (image, row, column, ...)."""
    ids: Tensor = needed(denoiser, arguments, name)
    if ids not in _SIZES:
        rows = ids[0] if ids.ndim == 3 else ids
        target = rows[rows[:, 0] == 0]
        _SIZES[ids] = tuple(int(size) for size in target[:, 1:3].amax(dim=0) + 1)
    return _SIZES[ids]


def needed(denoiser: nn.Module, arguments: Arguments, name: str) -> Any:
    """An argument without which the latent's layout is unknown.

    Raises:
        FeraError: the call does not have it.
    """
    value = arguments.get(name)
    if value is None:
        raise FeraError(
            f"{type(denoiser).__name__} was called without {name!r}, which says how its latent's tokens lie in the "
            "picture; pass it as the pipeline of this denoiser does"
        )
    return value
