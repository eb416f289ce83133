"""LoRA of a text encoder as data."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class TextLora:
    """LoRA of one text encoder.

    Args:
        rank: the rank of all layers.
        alpha: its strength is alpha / rank.
        layers: down matrix (R, in) and up matrix (out, R) by the layer's path, as files have it.
    """

    rank: int
    alpha: float
    layers: dict[str, tuple[Tensor, Tensor]]
