"""A layer of ComfyUI's model, by the path that its original code gave it."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# How many times as wide as a fused layer's other parts its feed-forward part is: `m`, and `g` where it has a gate.
FEED_FORWARD = {"m": 4, "g": 8}


@dataclass(frozen=True)
class Own:
    r"""A layer of ComfyUI's model, or a part of its outputs; in tables with groups of the pattern (`\1`).

    Args:
        path: its path in the denoiser.
        part: a letter of `parts`; empty for the whole layer.
        parts: of a layer that is several of diffusers': its outputs in their order. `q`, `k` and `v` are equally
            wide, and `m` or `g`, a feed-forward layer, `FEED_FORWARD` times as wide.
        second: path of another layer, where the second half of diffusers' outputs is; `path` has the first then.
        is_grouped: whether its queries are wider than its keys and values, which are alike.
        order: which of diffusers' outputs, cut into as many equal pieces, come first there; empty where they are alike.
    """

    path: str
    part: str = ""
    parts: str = ""
    second: str = ""
    is_grouped: bool = False
    order: tuple[int, ...] = ()


# Halves that changed places, as where shift and scale are.
SWAPPED = (1, 0)
# Patterns of diffusers' paths, of which the first that fits a whole path counts, to ComfyUI's.
Names = Mapping[str, str | Own]


def two_layers(old: str, new: str, names: tuple[str, str] = ("in_layer", "out_layer")) -> dict[str, str | Own]:
    """Names of an embedding's two layers, which diffusers calls `linear_1` and `linear_2`.

    Args:
        old: pattern of its path in diffusers.
        new: its path in ComfyUI.
        names: of the layers there.
    """
    return {rf"{old}\.linear_{number}": f"{new}.{name}" for number, name in enumerate(names, start=1)}


def ordered(outputs: Tensor, order: tuple[int, ...]) -> Tensor:
    """Outputs of diffusers' layer as ComfyUI's has them, along the first axis.

    Args:
        outputs: a weight, a bias, or an up matrix.
        order: as `Own.order`.
    """
    pieces = outputs.chunk(len(order))
    return torch.cat([pieces[index] for index in order])
