"""How the denoisers of a family lay out their latent, and how to see it as (B, C, H, W).

Each function takes the denoiser, the latent argument and all arguments of the call by name. What a pipeline adds to
the latent as a condition (a mask, a reference image, its tokens) must not steer the gate and is left out.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fera.errors import FeraError
from fera.models.places import place

Arguments = Mapping[str, Any]

# Where neither the number in nor the number out is the latent's: Stable Diffusion's latent upscaler gets the latent and
# that of the small picture, and gives one channel that is not used.
_ODD = {(8, 5): 4}

# Embeddings by which UNets of Kandinsky are known, whose output holds a variance.
_KANDINSKY = ("image", "image_hint", "text_image")


def own_channels(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, C, H, W), to which inpainting and edit variants append the channels of their conditions.

    Raises:
        FeraError: it has another number of dimensions.
    """
    if latent.ndim != 4:
        raise FeraError(
            f"{type(denoiser).__name__} got a latent of shape {tuple(latent.shape)}; fera routes it by one of shape "
            "(B, C, H, W), as its pipeline passes it"
        )
    return latent[:, : count_channels(denoiser)]


def count_channels(denoiser: nn.Module) -> int:
    """The latent's channels: those of conditions follow them and only go in, those of a variance only come out."""
    config: Any = denoiser.config
    into = config.in_channels
    out = getattr(config, "out_channels", None) or into
    kind = getattr(config, "addition_embed_type", None)
    if (into, out) in _ODD:
        return _ODD[into, out]
    if into == out:
        # DeepFloyd's upscaler gets the picture and the smaller one, and gives as many with the variance. It is told how
        # noisy the smaller one is, by which it is known: other UNets pool their captions too.
        is_upscaler = kind == "text" and getattr(config, "class_embed_type", None) == "timestep"
        return into // 2 if is_upscaler else into
    has_variance = out % 2 == 0 and (out > into or kind in _KANDINSKY)
    return min(into, out // 2 if has_variance else out)


def packed_by_ids(
    denoiser: nn.Module, latent: Tensor, arguments: Arguments, *, ids: str = "img_ids", drawn: int = 0, side: int = 2
) -> Tensor:
    """(B, L, 4 C), 2 x 2 pixels a token, whose places are rows of an argument: (image, row, column, ...).

    Tokens of reference images come before or after, and their first id is not that of the picture that is drawn; Fill
    appends channels. Ids may be scaled or moved, but lie row by row.

    Raises:
        FeraError: the call lacks the ids, or they are not those of one picture in this latent, row by row.
    """
    start, height, width = place(denoiser, _needed(denoiser, arguments, ids), latent.shape[1], ids, drawn)
    return unpack(latent[:, start : start + height * width, : count_channels(denoiser)], height, width, side)


def packed_by_shapes(denoiser: nn.Module, latent: Tensor, arguments: Arguments) -> Tensor:
    """(B, L, 4 C), 2 x 2 pixels a token, with the sizes of its pictures in `img_shapes`: (frames, height, width).

    The first picture is the one that is drawn, references follow. A layered denoiser draws all pictures but the last;
    its layers count as channels.

    Raises:
        FeraError: the call lacks the shapes, or they are not those of this latent.
    """
    shapes = _needed(denoiser, arguments, "img_shapes")[0]
    shapes = list(shapes) if isinstance(shapes[0], tuple | list) else [shapes]
    _, height, width = shapes[0]
    config: Any = denoiser.config
    layers = len(shapes) - 1 if getattr(config, "use_layer3d_rope", False) else 1
    tokens = _complete(denoiser, latent[:, : layers * height * width], layers * height * width, "img_shapes")
    pictures = unpack(tokens.reshape(-1, height * width, tokens.shape[2]), height, width)
    return pictures.reshape(len(tokens), -1, *pictures.shape[2:])


def listed(denoiser: nn.Module, latent: Any, arguments: Arguments) -> Tensor:
    """A list of pictures, each (C, 1, H, W); in the place of each there may be a list of references and the picture.

    Raises:
        FeraError: the pictures differ in size.
    """
    pictures = [entry[-1] if isinstance(entry, list) else entry for entry in latent]
    if len({picture.shape for picture in pictures}) > 1:
        raise FeraError(
            f"{type(denoiser).__name__} got pictures of different sizes in one call: "
            f"{', '.join(str(tuple(picture.shape)) for picture in pictures)}; pass pictures of one size at a time"
        )
    return torch.stack(pictures).squeeze(2)


def unpack(tokens: Tensor, height: int, width: int, side: int = 2) -> Tensor:
    """Tokens of 2 x 2 pixels, (B, h w, 4 C), as the picture they were cut from, (B, C, 2 h, 2 w).

    Args:
        tokens: row by row.
        height: the height of the picture in tokens.
        width: its width in tokens.
        side: the side of a token in pixels, where it is not 2.
    """
    batch, _, features = tokens.shape
    channels = features // side**2
    blocks = tokens.reshape(batch, height, width, channels, side, side)
    return blocks.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, side * height, side * width)


def _needed(denoiser: nn.Module, arguments: Arguments, name: str) -> Any:
    value = arguments.get(name)
    if value is None:
        raise FeraError(
            f"{type(denoiser).__name__} was called without {name!r}, which says how its latent's tokens lie in the "
            "picture; pass it as the pipeline of this denoiser does"
        )
    return value


def _complete(denoiser: nn.Module, tokens: Tensor, count: int, name: str) -> Tensor:
    if tokens.shape[1] != count:
        raise FeraError(
            f"{type(denoiser).__name__}: {name!r} describes a picture of {count} tokens, but its latent has only "
            f"{tokens.shape[1]}; pass both as the pipeline of this denoiser does"
        )
    return tokens
