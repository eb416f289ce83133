"""A layer of ComfyUI's model, by the path that its original code gave it."""

from collections.abc import Mapping
from dataclasses import dataclass

# How many times as wide as a fused layer's other parts its feed-forward part is.
FEED_FORWARD = 4


@dataclass(frozen=True)
class Own:
    r"""A layer of ComfyUI's model, or a part of its outputs; in tables with groups of the pattern (`\1`).

    Args:
        path: its path in the denoiser.
        part: a letter of `parts`; empty for the whole layer.
        parts: of a layer that is several of diffusers': its outputs in their order. `q`, `k` and `v` are equally
            wide, and `m`, a feed-forward layer, `FEED_FORWARD` times as wide.
        is_grouped: whether its queries are wider than its keys and values, which are alike.
        is_turned: whether the first half of its outputs is the second in diffusers', as where scale and shift are.
    """

    path: str
    part: str = ""
    parts: str = ""
    is_grouped: bool = False
    is_turned: bool = False


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
